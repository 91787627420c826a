"""Curves as text and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.cli.curves import Panel, Series, text_plot, write_png

PNG = b"\x89PNG\r\n\x1a\n"


def panel(exact: list[float]) -> Panel:
    return Panel("loss", [Series("float32", [0, 1, 2], [3.0, 2.0, 1.0]), Series("exact", [0, 1, 2], exact)])


def test_equal_curves_fall_on_one_another() -> None:
    drawn = text_plot(panel([3.0, 2.0, 1.0]), width=21, height=3).splitlines()
    assert [line.partition("|")[2] for line in drawn[1:4]] == ["*", " " * 10 + "*", " " * 20 + "*"]
    assert drawn[1].startswith("3 |")
    assert drawn[3].startswith("1 |")


def test_curves_that_part_are_told_apart() -> None:
    drawn = text_plot(panel([3.0, 3.0, 3.0]), width=21, height=3)
    assert drawn.count("x") - drawn.splitlines()[0].count("x") == 2
    assert drawn.count("*") == 2  # the legend's, and the common start


def test_a_curve_may_have_holes_or_nothing_at_all() -> None:
    nan = float("nan")
    assert "x" not in text_plot(panel([nan, nan, nan]), width=21, height=3).partition("\n")[2]
    assert text_plot(Panel("loss", [Series("exact", [0], [nan])])) == "loss: nothing to draw"


def test_a_flat_curve_is_drawn() -> None:
    assert text_plot(Panel("loss", [Series("exact", [5], [1.0])]), width=9, height=3).count("x") == 3  # "exact" has one


@pytest.mark.parametrize("panels", [1, 2])
def test_a_picture_is_a_png_of_a_size_that_grows_with_its_panels(tmp_path: Path, panels: int) -> None:
    path = tmp_path / "new" / "curves.png"
    write_png(path, [panel([3.0, 2.1, 1.2])] * panels, title="a step")
    data = path.read_bytes()
    assert data.startswith(PNG)
    assert int.from_bytes(data[16:20], "big") == pytest.approx(616 * panels, abs=2)
