"""Generated code is used only where it has just proved itself, and machine code from disk only if it is ours."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proofs.exact.backend import emit, jit, matmul_choice, trust
from proofs.exact.backend.emit import Code, Word
from proofs.exact.backend.graph import ELEMENTWISE, REDUCTIONS
from proofs.exact.backend.jit import Compiler
from proofs.exact.backend.matmul import choose
from proofs.exact.execute import run_unit
from proofs.exact.opcodes import Opcode
from proofs.exact.plan import Plan
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings
from tests.support.programs import mlp, mlp_data, mlp_state

SQUARE = """define void @square(ptr %pointers, i64 %begin, i64 %end) {
  %p = load ptr, ptr %pointers
  %x = load i64, ptr %p
  %y = mul i64 %x, %x
  store i64 %y, ptr %p
  ret void
}
"""


@pytest.fixture
def fresh_trust() -> Iterator[None]:
    trust.trusted_opcodes.cache_clear()
    yield
    trust.trusted_opcodes.cache_clear()


def test_every_generated_operation_answers_on_this_machine(fresh_trust: None) -> None:
    assert trust.trusted_opcodes() == ELEMENTWISE | REDUCTIONS


def test_an_operation_whose_code_is_wrong_runs_on_its_torch_kernel(
    fresh_trust: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    right = run_unit(program, mlp_state(program), data, 9, 2, 1, settings=Settings(fuse=False))

    def truncated(code: Code, x: Word, lo: int, hi: int, shift: int, bits: int) -> Word:
        """A shift that forgets to round."""
        x = code.binary("ashr", code.wide(x, 64), shift) if shift else x
        return emit.clamp(code, x, lo >> shift, hi >> shift, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    monkeypatch.setattr(emit, "rescale", truncated)
    assert trust.trusted_opcodes() == (ELEMENTWISE | REDUCTIONS) - {Opcode.RESCALE}
    assert "generated code for rescale is wrong" in caplog.text
    assert run_unit(program, mlp_state(program), data, 9, 2, 1) == right


def test_without_llvm_the_torch_kernels_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    right = run_unit(program, mlp_state(program), data, 9, 2, 1)

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("proofs.exact.backend.fused"):
            raise ImportError("no llvmlite here")
        return imported(name, *rest, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    made = Plan.of(program)
    assert made.fused is None and "no llvmlite here" in caplog.text
    assert run_unit(program, mlp_state(program), data, 9, 2, 1, plan=made) == right


def test_machine_code_is_made_once_and_then_read(tmp_path: Path) -> None:
    first, second = Compiler(tmp_path), Compiler(tmp_path)
    first.function("square", SQUARE)
    assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0]
    second.function("square", SQUARE)
    assert (first.compiled, second.compiled) == (1, 0)


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "writable", "folder"])
def test_machine_code_that_may_not_be_ours_is_made_again(tmp_path: Path, damage: str) -> None:
    Compiler(tmp_path).function("square", SQUARE)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    match damage:
        case "flipped":
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "short":
            file.write_bytes(content[:-1])
        case "empty":
            file.write_bytes(b"")
        case "folder":
            tmp_path.chmod(0o777)
        case _:
            file.chmod(0o622)
    again = Compiler(tmp_path)
    again.function("square", SQUARE)
    assert again.compiled == 1
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    compiler = Compiler(blocked / "kernels")
    compiler.function("square", SQUARE)
    assert compiler.compiled == 1


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    Compiler(tmp_path).function("square", SQUARE)
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_compiles_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    compiler = Compiler(jit.cache_directory())
    compiler.function("square", SQUARE)
    assert compiler.compiled == 1
    info = ValueInfo((24, 40), 0, -9, 9)
    assert choose(info, info, Settings()).name
    matmul_choice._cache.cache_clear()


def test_text_that_llvm_refuses_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        Compiler(None).function("square", SQUARE.replace("mul i64", "mull i64"))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.cache_directory() == tmp_path / "avenue" / "kernels"


def test_the_cache_keeps_the_newest_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit, "MOST_FILES", 2)
    monkeypatch.setattr(jit, "PRUNE_EVERY", 1)
    for age in (30, 20, 10):
        old = tmp_path / f"old{age}"
        old.write_bytes(b"x")
        os.utime(old, (1000 - age, 1000 - age))
    Compiler(tmp_path).function("square", SQUARE)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[1] == "old10"


def test_a_process_that_compiles_a_single_kernel_keeps_the_cache_in_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jit, "MOST_FILES", 2)
    for number in range(4):
        Compiler(tmp_path).function(f"square{number}", SQUARE.replace("@square", f"@square{number}"))
    assert len(list(tmp_path.iterdir())) == 2
