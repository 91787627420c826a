"""proofs.exact.backend.matmul_choice: a wrong kernel is found out on the very shape, and timings are only timings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proofs.exact.backend import matmul_choice
from proofs.exact.backend.matmul import MatmulKernel, choose, kernels_for
from proofs.exact.backend.matmul_kernels import Planes, Product
from proofs.exact.backend.matmul_trials import kernels_here
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings

A = ValueInfo((24, 40), 0, -32768, 32639)
B = ValueInfo((9, 40), 0, -32768, 32639)

needs_slices = pytest.mark.skipif("int8" not in kernels_here(), reason="int8 products saturate on this processor")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matmul_choice._cache.cache_clear()
    monkeypatch.setattr(matmul_choice, "_answered", {})
    yield tmp_path / "avenue" / "matmul.json"
    matmul_choice._cache.cache_clear()


def saturating(a: Planes, b: Planes, out: Planes) -> None:
    """vpmaddubsw: sums of two neighbouring products saturate at 16 bits, as on a processor without VNNI."""
    sums = iter(out)
    for x in a:
        for y in b:
            products = x.to(torch.int32)[:, None, :] * y.to(torch.int32)[None]
            pairs = products[..., ::2] + products[..., 1::2]
            next(sums).copy_(pairs.clamp(-(2**15), 2**15 - 1).sum(dim=-1))


def wrong_by_one(a: Planes, b: Planes, out: Planes) -> None:
    torch.matmul(a[0], b[0].mT, out=out[0])
    out[0][-1, -1] += 1


def with_run(name: str, run: object) -> dict[str, MatmulKernel]:
    kernels = kernels_for(Product(A, B), 1)
    kernels.pop("amx", None)
    assert callable(run)
    return kernels | {name: replace(kernels[name], run=run)}


def test_every_kernel_but_saturating_slices_answers_here() -> None:
    for name, kernel in kernels_for(Product(A, B), 1).items():
        assert matmul_choice.answers(kernel, Product(A, B)) or (name == "int8" and "int8" not in kernels_here()), name


@pytest.mark.parametrize(("name", "run"), [("int8", saturating), ("float64", wrong_by_one)])
def test_a_kernel_that_is_wrong_on_the_shape_is_not_chosen(
    name: str, run: object, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = with_run(name, run)
    preferred = [kernels[name], kernels["int64"]]
    assert matmul_choice.first_trusted(Product(A, B), preferred, kernels).name == "int64"
    assert f"the {name} product of [24, 40] by [9, 40] is wrong on this machine" in caplog.text


def test_a_kernel_that_raises_is_not_chosen() -> None:
    def refuse(a: Planes, b: Planes, out: Planes) -> None:
        raise RuntimeError("no such instruction")

    kernels = with_run("float64", refuse)
    assert matmul_choice.first_trusted(Product(A, B), [kernels["float64"]], kernels).name == "int64"


@pytest.mark.parametrize("name", ["float64", "int64"])
def test_settings_name_the_kernel(name: str) -> None:
    assert choose(A, B, Settings(matmul=name)).name == name


@needs_slices
def test_int8_means_slices_on_whichever_unit_multiplies_them() -> None:
    assert choose(A, B, Settings(matmul="int8")).name in {"int8", "amx"}


def test_a_named_kernel_that_cannot_hold_the_product_gives_way() -> None:
    wide = ValueInfo((24, 40), 0, -(2**30), 2**30)
    assert choose(wide, B, Settings(matmul="int8")).name == "float64"
    assert choose(wide, ValueInfo((9, 40), 0, 0, 2**20), Settings(matmul="float64")).name == "int64"


def test_a_function_takes_the_place_of_the_choice() -> None:
    mine = kernels_for(Product(A, B), 1)["int64"]
    assert choose(A, B, Settings(matmul=lambda a, b, settings: mine)) is mine


@needs_slices
def test_the_quickest_by_measurement_is_chosen_and_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"float64": 3.0, "int8": 2.0, "amx": 2.5, "int64": 4.0}
    monkeypatch.setattr(matmul_choice, "_measure", lambda kernel, product: times[kernel.name])
    assert choose(A, B, Settings()).name == "int8"

    def refuse(kernel: MatmulKernel, product: Product) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(matmul_choice, "_measure", refuse)
    matmul_choice._cache.cache_clear()  # as another process
    assert choose(A, B, Settings()).name == "int8"
    with pytest.raises(AssertionError, match="measured again"):
        choose(A, B, Settings(threads=2))
    assert list(own_cache.parent.iterdir()) == [own_cache]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"v": 3}', '{"v": {"1x1": {"int8": "fast"}}}', "[" * 100_000, "\x00"], ids=repr
)
def test_a_broken_cache_is_ignored_and_replaced(own_cache: Path, content: str) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(content)
    assert choose(A, B, Settings()).name in {"float64", "int8", "int64", "amx"}
    assert set(json.loads(own_cache.read_text())) == {matmul_choice._machine()}


def test_a_plan_measures_for_a_while_and_then_takes_what_is_usually_quickest(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(kernel: MatmulKernel, product: Product) -> float:
        measured.append(kernel.name)
        return 1.0

    monkeypatch.setattr(matmul_choice, "_measure", measure)
    usual = next(name for name in matmul_choice.USUALLY if name in kernels_for(Product(A, B), 1))
    assert choose(A, B, Settings(), matmul_choice.Allowance(0.0)).name in (usual, "float64")
    assert not measured and not own_cache.exists()
    allowance = matmul_choice.Allowance()
    choose(A, B, Settings(), allowance)
    assert measured and allowance.left_s < matmul_choice.MEASURING_S


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2**15 + 3, 7), (2**15 + 5, 7)),
        ((2**20, 1, 2), (2**20, 1, 2)),
        ((2**10, 2**10, 1, 1), (2**10, 2**10, 1, 1)),
        ((2**13 + 1, 2**14 + 9), (2**13, 2**14 + 9)),
        ((1, 2**30), (1, 2**30)),
        ((2, 2, 2**12 + 127, 2**12), (2, 2, 2**12, 2**12)),
    ],
    ids=str,
)
def test_a_large_product_is_asked_with_shorter_sides_of_the_same_rest(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    asked = matmul_choice.manageable(Product(ValueInfo(a, 0, -1, 1), ValueInfo(b, 0, -1, 1)))
    m, n, k = asked.m, asked.n, asked.k
    assert asked.batch * m * n * k <= matmul_choice.MOST_MACS
    assert asked.batch * max(m * n, m * k, n * k) <= matmul_choice.MOST_ELEMENTS
    assert [side % 128 for side in (m, n, k)] == [side % 128 for side in (a[-2], b[-2], a[-1])]
    assert (len(asked.a.shape), asked.a.shape[:-2]) == (len(a), asked.b.shape[:-2]) and min(asked.a.shape) > 0
    assert matmul_choice.manageable(Product(A, B)) == Product(A, B)


def test_thousands_of_tiny_products_take_no_scratch_memory_that_nobody_counted() -> None:
    """A pair of tiles for each, or a tensor for each slice of each, was two hundred times what they hold."""
    tiny = ValueInfo((2**17, 1, 2), 0, -128, 127)
    assert set(kernels_for(Product(tiny, tiny), 1)) == {"float64", "int64"}
    assert all(kernel.scratch_bytes < 2**20 for kernel in kernels_for(Product(A, B), 1).values())


def test_other_machines_timings_stay_in_the_file(own_cache: Path) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text('{"another": {"1x1x1x1 1 threads": {"int8": 0.5}}}')
    choose(A, B, Settings())
    assert set(json.loads(own_cache.read_text())) == {"another", matmul_choice._machine()}


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "avenue").write_text("a file where the folder should be")
    assert choose(A, B, Settings()).name in {"float64", "int8", "int64", "amx"}


def test_a_timing_includes_reading_and_writing_the_planes() -> None:
    kernel = kernels_for(Product(A, B), 1)["float64"]
    touched = []
    idle = replace(kernel, run=lambda a, b, out: touched.append((a[0].clone(), b[0].clone())))
    assert matmul_choice._measure(idle, Product(A, B)) > 0
    assert all(torch.equal(a, matmul_choice.operand(A, 1).to(torch.float64)) for a, _ in touched)
