"""What is printed where: stdout for the result, stderr for the rest, JSON alone with --json."""

from __future__ import annotations

import io
import json

import pytest

from node.cli.invocation import Invocation, run_command
from node.cli.output import PROGRESS_LINE_INTERVAL_S, Fields, Output, Table, format_duration, format_time
from protocol.errors import ConfigError, FundsError, UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def output(*, json_document: bool = False, debug: bool = False, terminal: bool = False, typed: str = "") -> Output:
    stream = Terminal if terminal else io.StringIO
    return Output(
        json_document=json_document, debug=debug, stdout=stream(), stderr=stream(), stdin=stream(typed)
    )  # fmt: skip


def said(out: Output) -> tuple[str, str]:
    assert isinstance(out._stdout, io.StringIO) and isinstance(out._stderr, io.StringIO)
    return out._stdout.getvalue(), out._stderr.getvalue()


def test_a_person_sees_blocks_and_a_program_the_document() -> None:
    blocks = (Fields("balance", [("stake", "5 AVN"), ("free", "2 AVN")]), Table(("unit", "node"), [("1", "7")]))
    for out, expected in ((output(), "stake  5 AVN"), (output(json_document=True), '"stake_wei": "5"')):
        out.emit({"stake_wei": "5"}, *blocks)
        assert expected in said(out)[0]
        assert said(out)[1] == ""


def test_json_is_one_document_and_nothing_else() -> None:
    out = output(json_document=True)
    out.note("working")
    with out.progress("train") as progress:
        progress.update(1, 2)
    out.emit({"a": 1})
    stdout, stderr = said(out)
    assert json.loads(stdout) == {"a": 1}
    assert stderr == ""


def test_a_command_has_one_result() -> None:
    out = output()
    out.emit({})
    with pytest.raises(RuntimeError):
        out.emit({})


def test_long_addresses_are_never_cut_off_a_terminal() -> None:
    out = output()
    address = "0x" + "ab" * 200
    out.emit({}, Table(("address",), [(address,)]), Fields("", [("address", address)]), address)
    assert said(out)[0].count(address) == 3


def test_markup_in_names_is_printed_as_it_is() -> None:
    out = output()
    out.emit({}, "[bold]task[/bold]", Table(("a",), [("[red]x[/red]",)]))
    assert "[bold]task[/bold]" in said(out)[0]


def test_no_color_is_obeyed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = output(terminal=True)
    out.emit({}, Table(("unit",), [("1",)]), "plain")
    assert "\x1b[3" not in said(out)[0], "no colour codes"


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (ConfigError("bad key", code="C-03", hint="did you mean x?"), "C-03", 3),
        (FundsError("too poor", code="F-01", hint="send some"), "F-01", 6),
        (ZeroDivisionError("by zero\nsecond line"), "X-01", 1),
    ],
)
def test_an_error_is_code_message_hint_and_exit_code(error: Exception, code: str, exit_code: int) -> None:
    def fail(call: Invocation) -> None:
        raise error

    out = output(json_document=True)
    assert run_command(Invocation(out), fail) == exit_code
    document = json.loads(said(out)[0])
    assert document["error"]["code"] == code
    assert document["error"]["hint"]
    assert "\n" not in document["error"]["message"]

    plain = output()
    assert run_command(Invocation(plain), fail) == exit_code
    stdout, stderr = said(plain)
    assert stdout == ""
    assert stderr.startswith(f"error [{code}]: ")
    assert "Traceback" not in stderr


def test_debug_shows_the_traceback_of_a_bug() -> None:
    def fail(call: Invocation) -> None:
        raise ZeroDivisionError("by zero")

    out = output(debug=True)
    assert run_command(Invocation(out), fail) == 1
    assert "Traceback" in said(out)[1]


def test_an_interrupt_is_130() -> None:
    def interrupted(call: Invocation) -> None:
        raise KeyboardInterrupt

    assert run_command(Invocation(output()), interrupted) == 130
    out = output(json_document=True)
    assert run_command(Invocation(out), interrupted) == 130
    assert json.loads(said(out)[0])["error"]["code"] == "X-02"


def test_an_error_after_the_result_does_not_spoil_the_document() -> None:
    def fail_late(call: Invocation) -> None:
        call.out.emit({"a": 1})
        raise ConfigError("late", hint="h")

    out = output(json_document=True)
    assert run_command(Invocation(out), fail_late) == 3
    stdout, stderr = said(out)
    assert json.loads(stdout) == {"a": 1}
    assert "late" in stderr


def test_confirm_shows_the_plan_and_takes_only_yes() -> None:
    plan = Fields("about to send", [("escrow", "150 AVN")])
    for typed in ("y\n", "YES\n"):
        out = output(terminal=True, typed=typed)
        out.confirm(plan, "send it?", yes=False)
        assert "150 AVN" in said(out)[1]
        assert said(out)[0] == ""
    for typed in ("n\n", "\n", "yep\n", ""):
        with pytest.raises(UsageError) as caught:
            output(terminal=True, typed=typed).confirm(plan, "send it?", yes=False)
        assert caught.value.code in ("U-02", "U-03")


def test_nobody_is_asked_with_json_or_without_a_terminal() -> None:
    plan = Fields("about to send", [])
    for out in (output(json_document=True, terminal=True, typed="y\n"), output(typed="y\n")):
        with pytest.raises(UsageError) as caught:
            out.confirm(plan, "send it?", yes=False)
        assert caught.value.code == "U-02"
        out.confirm(plan, "send it?", yes=True)


def test_progress_off_a_terminal_is_a_line_now_and_then() -> None:
    now = 0.0
    out = output()
    with out.progress("task", clock=lambda: now) as progress:
        for done in range(101):
            now = done * PROGRESS_LINE_INTERVAL_S / 50
            progress.update(done, 100, "loss 0.5")
        progress.update(100, 100, "loss 0.5")
    lines = said(out)[1].splitlines()
    assert lines == ["task: 0/100  loss 0.5", "task: 50/100  loss 0.5", "task: 100/100  loss 0.5"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = output(terminal=True)
    with out.progress("task") as progress:
        progress.update(1, 2, "loss 0.5")
    stdout, stderr = said(out)
    assert stdout == ""
    assert "task" in stderr and "loss 0.5" in stderr


def test_times_and_durations_are_short_and_plain() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert [format_duration(s) for s in (0, 59, 60, 95, 3600, 3660, 90000)] == [
        "0s", "59s", "1m", "1m 35s", "1h", "1h 1m", "1d 1h",
    ]  # fmt: skip
