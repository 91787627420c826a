"""A task file that loads can be posted; one that cannot says which key, why, and what to write instead."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from node.request import task_file, task_values
from node.request.task_file import TaskFile, load_task_file
from protocol.errors import UsageError

EXAMPLES = Path(__file__).parents[3] / "examples"
NOW = 1_800_000_000


def written(folder: Path, *edits: tuple[str, str]) -> Path:
    """The digits example with textual edits, each of which must find its place."""
    text = (EXAMPLES / "digits.toml").read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "task.toml"
    path.write_text(text)
    return path


def refusal(path: Path, *, now: int | None = NOW) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_task_file(path, now=now)
    assert caught.value.hint, "an error without a next step"
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    task = load_task_file(path, now=NOW)
    assert isinstance(task, TaskFile)
    assert task.task.deadline_at(NOW) > NOW


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_could_be_posted(path: Path) -> None:
    """The market wants no less collateral than a unit pays, and time for one unit before the deadline."""
    task = load_task_file(path, now=NOW)
    assert task.pay.collateral >= max(task.pay.unit_price, task.aggregation_price)


def test_mnist_example_is_the_demo_task() -> None:
    task = load_task_file(EXAMPLES / "mnist.toml", now=NOW)
    assert task.task.private
    assert task.task.shards >= 3
    assert task.task.rounds >= 2
    assert task.data.source == "mnist"


def test_mnist_example_shows_every_key() -> None:
    text = (EXAMPLES / "mnist.toml").read_text()
    for section, field in TaskFile.model_fields.items():
        assert f"[{section}]" in text
        assert isinstance(field.annotation, type)
        for name, key in field.annotation.model_fields.items():
            assert f"\n{key.alias or name} = " in text.replace("# ", ""), f"[{section}] {name} is not explained"


def test_amounts_are_exact_wei_and_durations_are_seconds(tmp_path: Path) -> None:
    task = load_task_file(
        written(tmp_path, ('unit_price = "2"', 'unit_price = "0.000000000000000001"'), ('"2m"', "90"), ('"5m"', '"2h"'))
    )
    assert task.pay.unit_price == 1
    assert task.pay.collateral == 10 * 10**18
    assert task.aggregation_price == 5 * 10**17
    assert (task.task.compute_window_s, task.task.challenge_window_s) == (90, 7200)


def test_learning_rate_keeps_its_decimal_digits(tmp_path: Path) -> None:
    path = written(tmp_path, ("learning_rate = 0.05", "learning_rate = 0.30000000000000000001"))
    assert load_task_file(path).training.learning_rate == Decimal("0.30000000000000000001")


@pytest.mark.parametrize(
    ("old", "new", "key", "nearest"),
    [
        ("batch_size", "batchsize", "training.batchsize", "batch_size"),
        ("compute_window", "compute_windw", "task.compute_windw", "compute_window"),
        ("unit_price", "price_unit", "pay.price_unit", "unit_price"),
        ("[model]", "[modle]", "modle", "model"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_valid_one(
    tmp_path: Path, old: str, new: str, key: str, nearest: str
) -> None:
    error = refusal(written(tmp_path, (old, new)))
    assert error.code == "U-32"
    assert key in error.message
    assert error.hint == f"did you mean {nearest!r}?"


def test_unknown_key_like_no_other_lists_the_valid_ones(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ('source = "digits"', 'source = "digits"\nzzz = 1')))
    assert error.code == "U-32"
    assert "images" in error.hint


def test_missing_file_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent.toml")
    assert error.code == "U-30"
    assert "absent.toml" in error.message


def test_huge_file_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(UsageError, match="larger than"):
        load_task_file(path)


@pytest.mark.parametrize("content", [b"[task\n", b"\xff\xfe\x00", b"a = " + b"[" * 50_000])
def test_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(content)
    assert refusal(path).code == "U-31"


def test_missing_key_is_named(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ("rounds = 3\n", "")))
    assert (error.code, error.message) == ("U-33", "task.rounds is missing")


@pytest.mark.parametrize("zero", ['"0"', '"0.000"'])
@pytest.mark.parametrize("key", ["unit_price", "aggregation_price"])
def test_price_of_zero_is_refused(tmp_path: Path, key: str, zero: str) -> None:
    value = {"unit_price": '"2"', "aggregation_price": '"0.5"'}[key]
    error = refusal(written(tmp_path, (f"{key} = {value}", f"{key} = {zero}")))
    assert error.code == "U-35"
    assert key in error.message


def test_sharded_task_without_aggregation_price_is_refused(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ('aggregation_price = "0.5"\n', "")))
    assert error.code == "U-33"
    assert "aggregation_price" in error.message


def test_single_shard_needs_no_aggregation_price(tmp_path: Path) -> None:
    task = load_task_file(written(tmp_path, ('aggregation_price = "0.5"\n', ""), ("shards = 2", "shards = 1")))
    assert task.aggregation_price == 0


@pytest.mark.parametrize("past", ["2020-01-01T00:00:00Z", "0"])
def test_deadline_in_the_past_is_refused(tmp_path: Path, past: str) -> None:
    error = refusal(written(tmp_path, ('deadline = "15m"', f"deadline = {past}")))
    assert error.code == "U-36"
    assert "past" in error.message


def test_deadline_shorter_than_one_unit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ('deadline = "15m"', 'deadline = "100s"')))
    assert error.code == "U-36"
    assert "100 s" in error.message
    assert "180 s" in error.message


def test_deadline_beyond_what_the_market_allows_is_refused(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ('deadline = "15m"', 'deadline = "366d"')))
    assert error.code == "U-36"


def test_limits_are_the_contracts() -> None:
    source = (EXAMPLES.parent / "contracts" / "TaskMarket.sol").read_text()
    assert f"MAX_SHARDS = {task_file.MAX_SHARDS};" in source
    assert f"MAX_DEADLINE_S = {task_file.MAX_DEADLINE_S // 86400} days;" in source
    assert f"MAX_WINDOW_S = {task_values.MAX_WINDOW_S // 86400} days;" in source


def test_deadline_may_be_a_date_with_offset(tmp_path: Path) -> None:
    task = load_task_file(written(tmp_path, ('deadline = "15m"', "deadline = 2027-03-01T01:00:00+01:00")), now=NOW)
    assert task.task.deadline_at(NOW) == 1_803_859_200


@pytest.mark.parametrize("value", ["2040-01-01T00:00:00", "true", "1.5"])
def test_deadline_without_offset_or_meaning_is_refused(tmp_path: Path, value: str) -> None:
    error = refusal(written(tmp_path, ('deadline = "15m"', f"deadline = {value}")))
    assert error.code == "U-36"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('unit_price = "2"', "unit_price = 2.5", "pay.unit_price"),
        ('unit_price = "2"', 'unit_price = "-1"', "pay.unit_price"),
        ('unit_price = "2"', 'unit_price = "1e40"', "pay.unit_price"),
        ('unit_price = "2"', 'unit_price = "NaN"', "pay.unit_price"),
        ('unit_price = "2"', 'unit_price = "1.0000000000000000001"', "pay.unit_price"),
        ('deadline = "15m"', 'deadline = "soon"', "task.deadline"),
        ('reveal_window = "1m"', 'reveal_window = "31d"', "task.reveal_window"),
        ("rounds = 3", "rounds = 0", "task.rounds"),
        ("rounds = 3", "rounds = 2.5", "task.rounds"),
        ("rounds = 3", 'rounds = "3"', "task.rounds"),
        ("shards = 2", "shards = 257", "task.shards"),
        ("private = false", "private = 0", "task.private"),
        ("hidden = [64]", "hidden = []", "model.hidden"),
        ("hidden = [64]", "hidden = [0]", "model.hidden.0"),
        ('kind = "mlp"', 'kind = "gpt"', "model.kind"),
        ("learning_rate = 0.05", "learning_rate = 0", "training.learning_rate"),
        ("learning_rate = 0.05", "learning_rate = nan", "training.learning_rate"),
        ("learning_rate = 0.05", "learning_rate = true", "training.learning_rate"),
        ("momentum = 0.9", "momentum = 1.0", "training.momentum"),
        ("seed = 7", "seed = 9223372036854775808", "training.seed"),
        ("checkpoint_interval = 25", "checkpoint_interval = 101", "training.checkpoint_interval"),
        ('source = "digits"', 'source = "imagenet"', "data.source"),
        ('source = "digits"', "", "data"),
        ('source = "digits"', 'source = "digits"\nfile = "x.npz"', "data"),
        ('source = "digits"', 'images = "x"', "data"),
        ('source = "digits"', 'source = "moby-dick"', "data"),
        ('source = "digits"', 'source = "digits"\ncontext = 64', "data"),
        ('kind = "mlp"', 'file = "gpt.py"', "model has both file and hidden"),
        ('kind = "mlp"\nhidden = [64]', "", "model needs file"),
    ],
)
def test_bad_value_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    error = refusal(written(tmp_path, (old, new)))
    assert error.code == "U-34"
    assert error.message.startswith(key)
    assert "Input" not in error.message, "one sentence, about the key"


def test_data_paths_are_relative_to_the_task_file(tmp_path: Path) -> None:
    path = written(tmp_path, ('source = "digits"', 'file = "mine.npz"'))
    error = refusal(path)
    assert error.code == "U-38"
    assert str(tmp_path / "mine.npz") in error.message
    (tmp_path / "mine.npz").write_bytes(b"")
    assert load_task_file(path).data.file == tmp_path / "mine.npz"


STEP_FILE = (('kind = "mlp"\nhidden = [64]', 'file = "gpt.py"'), ("learning_rate = 0.05\nmomentum = 0.9\n", ""))


def test_step_file_is_relative_to_the_task_file(tmp_path: Path) -> None:
    path = written(tmp_path, *STEP_FILE)
    error = refusal(path)
    assert error.code == "U-44"
    assert str(tmp_path / "gpt.py") in error.message
    (tmp_path / "gpt.py").write_text("raise SystemExit('reading a task file runs nothing')")
    assert load_task_file(path).model.file == tmp_path / "gpt.py"


@pytest.mark.parametrize("key", ["learning_rate = 0.05", "momentum = 0.9"])
def test_what_the_step_file_says_itself_is_refused_beside_it(tmp_path: Path, key: str) -> None:
    (tmp_path / "gpt.py").touch()
    error = refusal(written(tmp_path, *STEP_FILE, ("batch_size = 32\n", f"batch_size = 32\n{key}\n")))
    assert error.code == "U-34"
    assert f"training.{key.split()[0]} stands beside model.file: gpt.py" in error.message


def test_built_in_mlp_needs_a_learning_rate(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, ("learning_rate = 0.05\n", "")))
    assert (error.code, "training.learning_rate is missing" in error.message) == ("U-33", True)


def test_weights_are_relative_to_the_task_file(tmp_path: Path) -> None:
    path = written(tmp_path, ('kind = "mlp"\n', 'kind = "mlp"\nweights = "base.safetensors"\n'))
    assert refusal(path).code == "U-38"
    (tmp_path / "base.safetensors").touch()
    assert load_task_file(path).model.weights == tmp_path / "base.safetensors"


def test_text_says_how_long_a_sample_is(tmp_path: Path) -> None:
    task = load_task_file(written(tmp_path, ('source = "digits"', 'source = "moby-dick"\ncontext = 64')))
    assert task.data.is_text and task.data.context == 64
    path = written(tmp_path, ('source = "digits"', 'text = "book.txt"\ncontext = 64'))
    assert refusal(path).code == "U-38"
    (tmp_path / "book.txt").touch()
    assert load_task_file(path).data.text == tmp_path / "book.txt"


def test_reading_a_task_file_needs_neither_torch_nor_web3() -> None:
    code = "import sys, node.request.task_file; sys.exit(any(m in sys.modules for m in ('torch', 'web3')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
