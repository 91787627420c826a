"""Step files: loaded under their seed, and whatever is wrong with one is said with its own line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from node.training.step_file import load_step_file
from protocol.errors import UsageError

GOOD = """
import torch
from torch import nn

AT_IMPORT = torch.rand(3)

def init():
    return dict(nn.Linear(3, 2).named_parameters()), {"drawn": AT_IMPORT}

def step(params, state, batch):
    return params, state, (params["weight"] ** 2).sum()
"""


def written(folder: Path, text: str, name: str = "my_step.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_step_file(path)
    assert caught.value.hint, "an error without a next step"
    return caught.value


def test_initial_weights_follow_from_the_seed_and_leave_the_generator_alone(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    before = torch.random.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        params, state = load_step_file(path, seed).initial(seed)
        drawn.append((params["weight"].tolist(), state["drawn"].tolist()))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_example_is_the_same_each_time_so_that_a_step_has_one_program(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "\ndef example_batch():\n    return {'x': torch.randn(4, 3)}\n")
    before = torch.random.get_rng_state()
    first, second = (load_step_file(path, seed).example()["x"] for seed in (1, 2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_optional_functions_may_be_left_out(tmp_path: Path) -> None:
    loaded = load_step_file(written(tmp_path, GOOD))
    assert (loaded.name, loaded.evaluate, loaded.example_batch) == ("my_step.py", None, None)


def test_modules_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    written(tmp_path, "WIDTH = 3\n", "my_sizes_beside.py")
    path = written(tmp_path, "import my_sizes_beside\n" + GOOD)
    assert load_step_file(path).initial(0)[0]["weight"].shape == (2, 3)
    assert str(tmp_path) not in sys.path


def test_a_missing_file_and_one_that_is_no_python_are_refused(tmp_path: Path) -> None:
    assert "absent.py" in refusal(tmp_path / "absent.py").message
    assert refusal(tmp_path / "absent.py").code == "U-44"
    assert refusal(written(tmp_path, "", "model.txt")).code == "U-44"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\nx = 1 +\n", "line 2, import: SyntaxError"),
        ("import torch\n\nx = wdith\n", "line 3, import: NameError: name 'wdith' is not defined\n    x = wdith"),
        ("import no_such_module_here\n", "line 1, import: ModuleNotFoundError"),
        ("import torch\ntorch.zeros(2) @ torch.zeros(3)\n", "line 2, import: RuntimeError"),
    ],
    ids=["syntax", "name", "module", "inside torch"],
)
def test_an_error_while_importing_names_the_authors_line(tmp_path: Path, text: str, said: str) -> None:
    error = refusal(written(tmp_path, text))
    assert error.code == "U-45"
    assert said in error.message


def test_an_error_in_init_names_the_authors_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("    return dict(nn", "    size = 1 / 0\n    return dict(nn"))
    with pytest.raises(UsageError, match="line 8, init\\(\\): ZeroDivisionError") as caught:
        load_step_file(path).initial(0)
    assert caught.value.code == "U-45"
    assert "size = 1 / 0" in caught.value.message


@pytest.mark.parametrize("name", ["init", "step"])
def test_a_missing_function_is_named(tmp_path: Path, name: str) -> None:
    error = refusal(written(tmp_path, GOOD.replace(f"def {name}(", "def other(")))
    assert error.code == "U-46"
    assert f"{name}()" in error.message


def test_options_are_those_of_the_compiler_or_refused(tmp_path: Path) -> None:
    made = 'from proofs.exact.compiler.formats import Options\nOPTIONS = Options(overflow="assert")\n'
    loaded = load_step_file(written(tmp_path, GOOD + made))
    assert loaded.options is not None and loaded.options.overflow == "assert"
    assert load_step_file(written(tmp_path, GOOD)).options is None
    error = refusal(written(tmp_path, GOOD + 'OPTIONS = {"overflow": "assert"}\n'))
    assert (error.code, "OPTIONS in" in error.message) == ("U-46", True)
    wrong = GOOD + 'from proofs.exact.compiler.formats import Options\nOPTIONS = Options(overflow="wrap")\n'
    assert "overflow is" in refusal(written(tmp_path, wrong)).message


def test_what_is_no_function_and_what_returns_no_pair_are_refused(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, GOOD + "\nstep = 3\n")).code == "U-46"
    path = written(tmp_path, GOOD + "\ndef init():\n    return [1, 2]\n")
    with pytest.raises(UsageError, match="returns list, not \\(params, state\\)"):
        load_step_file(path).initial(0)
