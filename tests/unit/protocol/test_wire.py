"""What a stranger's server says is shown to people, so it is made plain first."""

from __future__ import annotations

from protocol.errors import ReplayError
from protocol.wire import ErrorBody


def test_refusal_is_the_same_error_on_this_side() -> None:
    error = ErrorBody(code="V-07", message="used before", hint="sign again").to_exception()
    assert isinstance(error, ReplayError)
    assert (error.code, error.message, error.hint) == ("V-07", "used before", "sign again")


def test_refusal_cannot_write_on_the_terminal_of_its_reader() -> None:
    error = ErrorBody(code="V\x1b-07", message="a\x1b[2Jb\r\nc" + "x" * 9000, hint="\x1b]0;title\x07").to_exception()
    assert (error.code + error.message + error.hint).isprintable()
    assert len(error.message) == 500
