"""avenue program: whether a training step compiles, what it compiles to, and how it trains beside float32."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Output
from protocol.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from node.cli.program_subject import Subject
    from node.cli.program_view import ProgramView
    from node.training.compare import Comparison, Prepared
    from proofs.exact.compiler.errors import CompileError

app = typer.Typer(
    help="Look into training steps and the programs they compile to.", no_args_is_help=True, rich_markup_mode=None
)

_TIMED_STEPS = 7
_TIMING_LIMIT_S = 20.0

_File = Annotated[Path, typer.Argument(help="Step file: init, step, evaluate, example_batch.", metavar="FILE")]
_Task = Annotated[Path | None, typer.Option("--task", help="Task file (TOML) with data, batch, seed and steps.")]
_Data = Annotated[
    str | None,
    typer.Option("--data", help="mnist, digits, moby-dick, or a .npz, .safetensors or .txt file.", metavar="NAME"),
]
_Context = Annotated[int | None, typer.Option("--context", min=1, help="Of text: characters of a sample.")]
_Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Samples of a batch.")]
_Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps: schedules and counters go this far.")]
_Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of initial weights and batch order.")]
_Threads = Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads.")]


_LOOK = "200 to 2000, so that looking takes no longer than training"


@command(app, "check")
def check(
    call: Invocation,
    file: _File,
    task: _Task = None,
    data: _Data = None,
    context: _Context = None,
    batch: _Batch = None,
    steps: _Steps = None,
    seed: _Seed = None,
    threads: _Threads = 1,
) -> int:
    """Compile a step: what it costs to run, or everything that keeps it from compiling, at its lines.

    Without data, the step file's example_batch() says what a batch looks like. Exit code 2 if it does not compile.
    """
    from node.cli.program_subject import Subject, set_threads, view_of

    set_threads(threads)
    from proofs.exact.compiler.errors import CompileError

    subject = Subject.of(file, task=task, data=data, context=context, batch=batch, steps=steps, seed=seed)
    started = time.perf_counter()
    try:
        prepared = subject.prepare()
    except CompileError as error:
        return _refused(call.out, file, error)
    compile_s, compiled = time.perf_counter() - started, prepared.compiled
    from node.cli.program_view import data_size, figures_document

    view, report = view_of(compiled), compiled.report(measure=False)
    step_s = _seconds_per_step(subject, prepared, threads)
    document = {
        "ok": True,
        "file": str(file),
        "data": subject.material.name,
        "parameters": report.parameters,
        **figures_document(view.figures()),
        "peak_bytes": report.peak_bytes,
        "seconds_per_step": step_s,
        "threads": threads,
        "compile_seconds": compile_s,
    }
    rows = [("parameters", f"{report.parameters:,}"), *figure_rows(view)]
    rows.append(("memory of a step", f"at most {data_size(report.peak_bytes)}"))
    rows.append(("time of a step here", f"{step_s:.3g} s on {threads} thread{'s' if threads > 1 else ''}"))
    call.out.emit(document, Fields(f"{file.name} compiles, in {compile_s:.1f} s, on {subject.material.name}", rows))
    return 0


@command(app, "show", needs=Needs.NETWORK)
def show(
    call: Invocation,
    what: Annotated[str, typer.Argument(help="Step file (.py), encoded program, or id of a task.", metavar="WHAT")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the graph to this file.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the encoded program to this file.")] = None,
    task: _Task = None,
    data: _Data = None,
    context: _Context = None,
    batch: _Batch = None,
    steps: _Steps = None,
    seed: _Seed = None,
) -> None:
    """Show a program: each operation with its shape, bits, scale and interval, under the line it came from."""
    from node.cli.program_subject import Subject, find_program, view_of

    if what.endswith(".py"):
        compiled = (
            Subject.of(Path(what), task=task, data=data, context=context, batch=batch, steps=steps, seed=seed)
            .prepare_or_explain()
            .compiled
        )
        view, title = view_of(compiled), Path(what).name
    else:
        view, title = find_program(call, what)
    document = {"title": title, **view.document()}
    if save is not None:
        from proofs.exact.encoding import encode_program

        _write(save, encode_program(view.program))
        document["program"] = str(save)
    if html is not None:
        from node.cli.program_page import page

        _write(html, page(view, title).encode())
        document["page"] = str(html)
    written = [f"{what}: {path}" for what, path in (("page", html), ("program", save)) if path is not None]
    listing = [] if written else ["", "\n".join(view.listing())]
    call.out.emit(document, Fields(title, figure_rows(view)), *written, *listing)


@command(app, "compare")
def compare(
    call: Invocation,
    file: _File,
    task: _Task = None,
    data: _Data = None,
    context: _Context = None,
    batch: _Batch = None,
    steps: _Steps = None,
    seed: _Seed = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs, each with other weights and order.")] = 1,
    every: Annotated[int | None, typer.Option("--every", min=1, help="Steps between two looks.")] = None,
    test_samples: Annotated[
        int | None,
        typer.Option("--test-samples", min=1, help="Held-out samples of a look.", show_default=_LOOK),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the curves into this PNG file.")] = None,
    threads: _Threads = 1,
) -> int:
    """Train float32 and exact side by side, from the same weights, over the same batches; show both and the gap.

    Ctrl+C ends it with what there is.
    """
    from node.cli.program_subject import Subject, explained, set_threads
    from node.cli.signals import stop_on_signals

    set_threads(threads)
    import node.training.compare as training
    from node.cli.comparison_view import comparison_blocks, comparison_document, curve_panels, point_note
    from node.cli.curves import text_plot, write_png
    from proofs.exact.compiler.errors import CompileError
    from proofs.exact.settings import Settings

    subject = Subject.of(file, task=task, data=data, context=context, batch=batch, steps=steps, seed=seed)
    looks = range(0, subject.steps, every or max(1, subject.steps // 20))
    if test_samples is None:
        test_samples = training.held_out_of_a_look(subject.steps, subject.material.batch_size, len(looks))
    runs: list[Comparison] = []
    with stop_on_signals(call.out) as request:
        for offset in range(seeds):
            with call.out.progress(f"seed {subject.seed + offset}") as progress:
                try:
                    prepared = subject.prepare(offset)
                    run = training.compare(
                        subject.step,
                        subject.material,
                        prepared,
                        seed=subject.seed + offset,
                        steps=subject.steps,
                        looks=looks,
                        test_samples=test_samples,
                        settings=Settings(threads=threads),
                        watch=lambda done, now: progress.update(done, subject.steps, point_note(now)),
                        stop=request.event.is_set,
                    )
                except CompileError as error:
                    raise explained(file, error) from error
            runs.append(run)
            if request.event.is_set():
                break
    panels = curve_panels(runs)
    document = comparison_document(file.name, subject.material.name, runs)
    if plot is not None:
        try:
            write_png(plot, panels, title=file.name)
        except OSError as error:
            raise _unwritable(plot, error) from error
        document["plot"] = str(plot)
    drawn = [text_plot(panel) for panel in panels]
    call.out.emit(document, *comparison_blocks(runs), *drawn, *([f"curves: {plot}"] if plot else []))
    return request.exit_code


def figure_rows(view: ProgramView) -> list[tuple[str, str]]:
    """The figures of a program, for people."""
    from node.cli.program_view import data_size, place, quantity

    figures = view.figures()
    origin = view.origin(figures.widest)
    where = f", {place(origin)}  {origin.location.code}" if origin else ""
    return [
        ("operations", f"{figures.operations:,}: " + ", ".join(f"{name} {count}" for name, count in figures.by_opcode)),
        ("multiply-accumulates", f"{quantity(figures.macs)} a step"),
        ("widest intermediate", f"{figures.widest_bits} bits: {view.name(figures.widest)}{where}"),
        ("state", data_size(figures.state_bytes)),
        ("constants", f"{figures.constants}, {data_size(figures.constant_bytes)}"),
        ("program", f"{figures.program_bytes:,} bytes"),
        ("program root", "0x" + figures.root.hex()),
    ]


def _refused(out: Output, file: Path, error: CompileError) -> int:
    """Every problem at once."""
    problems = error.as_data()
    message = f"{file.name} does not compile: {len(problems)} problem{'s' if len(problems) != 1 else ''}"
    hint = "docs/exact-training.md says what can be written instead"
    document = {"ok": False, "file": str(file), "problems": problems}
    document["error"] = {"code": "U-55", "message": message, "hint": hint}
    out.emit(document, "\n\n".join([*map(str, error.problems), f"{message}. {hint}"]))
    return UsageError.exit_code


def _seconds_per_step(subject: Subject, prepared: Prepared, threads: int) -> float:
    """The median of a few steps; the first, which makes kernels ready, is left out."""
    from node.training.compare import run_steps
    from proofs.exact.settings import Settings

    steps = min(_TIMED_STEPS, subject.steps)
    settings = Settings(threads=threads)
    times = run_steps(
        subject.material, prepared, seed=subject.seed, steps=steps, settings=settings, limit_s=_TIMING_LIMIT_S
    )
    later = sorted(times[1:] or times)
    return later[len(later) // 2]


def _write(path: Path, data: bytes) -> None:
    from node.files import write_whole

    try:
        write_whole(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {path}: {error.strerror}", code="C-01", hint="choose another file")
