"""proofs.exact.backend.amx_support: tiles are used only where processor, system and compiler all have them."""

from __future__ import annotations

import ctypes
import sys

import llvmlite.binding
import numba
import pytest

from proofs.exact.backend import amx_support
from proofs.exact.backend.matmul import kernels_for
from proofs.exact.backend.matmul_kernels import Product
from proofs.exact.ranges import ValueInfo

SQUARE = ValueInfo((32, 32), 0, -32768, 32639)


@pytest.fixture
def machine_with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as anybody asks: Linux on x86-64 with AMX, and a system call that grants it."""

    class System:
        def syscall(self, *arguments: int) -> int:
            assert arguments == (158, 0x1023, 18)
            return 0

    for setting in ("CPU_NAME", "CPU_FEATURES"):
        monkeypatch.setattr(numba.config, setting, None, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"amx-int8": True, "amx-tile": True})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: System())


def test_tiles_are_used_where_everything_has_them(machine_with_tiles: None) -> None:
    assert amx_support.usable.__wrapped__()


def test_a_processor_without_tiles_is_not_asked_for_them(
    machine_with_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"avx2": True})
    assert not amx_support.usable.__wrapped__()


@pytest.mark.parametrize("setting", ["CPU_NAME", "CPU_FEATURES"])
def test_tiles_are_left_alone_where_numba_compiles_for_another_processor(
    machine_with_tiles: None, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(numba.config, setting, "generic", raising=False)
    assert not amx_support.usable.__wrapped__()


def test_a_system_that_refuses_leaves_them_unused(machine_with_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def syscall(self, *arguments: int) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Refusing())
    assert not amx_support.usable.__wrapped__()


def test_another_system_has_no_tiles(machine_with_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not amx_support.usable.__wrapped__()


def test_without_tiles_no_kernel_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx_support, "usable", lambda: False)
    assert set(kernels_for(Product(SQUARE, SQUARE), 1)) == {"int64", "float64", "int8"}


def test_three_slices_and_sums_beyond_int32_are_not_for_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx_support, "usable", lambda: True)
    assert "amx" in kernels_for(Product(SQUARE, SQUARE), 1)
    wide = ValueInfo((32, 32), 0, -40000, 40000)
    assert "amx" not in kernels_for(Product(wide, SQUARE), 1)
    long = ValueInfo((2, 65536), 0, -32768, 32639)
    assert "amx" not in kernels_for(Product(long, long), 1)
