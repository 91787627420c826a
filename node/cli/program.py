"""avenue program: what a training step compiles to, whether it compiles at all, and how it trains beside float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields
from protocol.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from node.cli.program_view import Figures, ProgramView

app = typer.Typer(
    help="Look into training steps and the programs they compile to.", no_args_is_help=True, rich_markup_mode=None
)

_MAGIC = b"AVPR"


@command(app, "show", needs=Needs.NETWORK)
def show(
    call: Invocation,
    what: Annotated[str, typer.Argument(help="Step file (.py), encoded program, or id of a task.", metavar="WHAT")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the graph to this file.")] = None,
) -> None:
    """Show a program: each operation with its shape, bits, scale and interval, under the line it came from."""
    view, title = _find(call, what)
    document = {"title": title} | view.document()
    if html is not None:
        from node.cli.program_page import page

        _write(html, page(view, title))
        call.out.emit(
            document | {"page": str(html)}, Fields(f"{title}: the page is {html}", figure_rows(view.figures()))
        )
        return
    call.out.emit(document, Fields(title, figure_rows(view.figures())), "", "\n".join(view.listing()))


def figure_rows(figures: Figures) -> list[tuple[str, str]]:
    from node.cli.program_view import data_size, quantity

    return [
        ("operations", f"{figures.operations:,}: " + ", ".join(f"{name} {count}" for name, count in figures.by_opcode)),
        ("multiply-accumulates", quantity(figures.macs)),
        ("widest intermediate", f"{figures.widest_bits} bits, %{figures.widest}"),
        ("state", data_size(figures.state_bytes)),
        ("constants", f"{figures.constants}, {data_size(figures.constant_bytes)}"),
        ("program", f"{figures.program_bytes:,} bytes"),
        ("root", "0x" + figures.root.hex()),
    ]


def _find(call: Invocation, what: str) -> tuple[ProgramView, str]:
    """The program that `what` names: a file of either kind, else a task on chain."""
    from node.cli.program_view import ProgramView
    from proofs.exact.encoding import decode_program
    from proofs.exact.program import ProgramError
    from proofs.exact.tensor_type import TensorError
    from proofs.exact.wire import FormatError

    path = Path(what)
    if path.is_file():
        data = path.read_bytes()
        if not data.startswith(_MAGIC):
            raise UsageError(f"{path} is neither a step file (.py) nor an encoded program", code="U-51")
        try:
            return ProgramView(decode_program(data)), path.name
        except (FormatError, ProgramError, TensorError) as error:
            raise UsageError(
                f"{path} is not a whole program: {error}",
                code="U-51",
                hint="it was cut, altered, or is of another version",
            ) from error
    if path.suffix or "/" in what:
        raise UsageError(f"no such file: {what}", code="U-50", hint="a step file (.py), a program, or a task id")
    return _of_task(call, what)


def _of_task(call: Invocation, what: str) -> tuple[ProgramView, str]:
    from node.cli.chain_view import find_task, hex_id
    from node.cli.program_view import ProgramView
    from proofs.exact.encoding import decode_program

    with call.context() as context:
        from node.request.view import REQUESTER
        from node.taskbook import TaskBook

        spec = find_task(context, what).spec
        book = TaskBook(spec, context.reading_gateway, context.domain, context.client.node_of, None, REQUESTER)
        return ProgramView(decode_program(book.program())), f"task {hex_id(spec.task_id)[:10]}"


def _write(path: Path, text: str) -> None:
    from node.files import write_whole

    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", code="C-01", hint="choose another file") from error
