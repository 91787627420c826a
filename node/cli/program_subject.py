"""What `avenue program` is asked about: a step file with its data, or a program that is there already."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.program_view import ProgramView
from protocol.errors import UsageError

if TYPE_CHECKING:
    from node.cli.invocation import Invocation
    from node.request.task_file import DataSection
    from node.training.compare import Material, Prepared
    from node.training.step_file import TrainingStep
    from proofs.exact.compiler.compiled import CompiledStep
    from proofs.exact.compiler.errors import CompileError

DEFAULT_STEPS = 200
_MAGIC = b"AVPR"


@dataclass(frozen=True, slots=True)
class Subject:
    """A step file, what it is trained on, and for how long."""

    file: Path
    step: TrainingStep
    material: Material
    steps: int
    seed: int

    @classmethod
    def of(
        cls,
        file: Path,
        *,
        task: Path | None = None,
        data: str | None = None,
        context: int | None = None,
        batch: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
    ) -> Subject:
        """Flags win over the task file. Raises UsageError."""
        from node.request.task_file import load_task_file
        from node.training.compare import load_material
        from node.training.step_file import load_step_file

        source = None
        if task is not None:
            given = load_task_file(task)
            training = given.training
            source, batch = given.data, batch or training.batch_size
            seed = training.seed if seed is None else seed
            steps = steps or given.task.rounds * training.steps_per_round
        if data is not None:
            source = _data_section(data, context)
        seed = seed or 0
        step = load_step_file(file, seed)
        return cls(file, step, load_material(step, source, batch), steps or DEFAULT_STEPS, seed)

    def prepare(self, offset: int = 0) -> Prepared:
        """Compiled, under the seed that lies `offset` further on. Raises CompileError."""
        from node.training.compare import prepare

        return prepare(self.step, self.material, seed=self.seed + offset, steps=self.steps)

    def prepare_or_explain(self) -> Prepared:
        """Raises UsageError U-55."""
        from proofs.exact.compiler.errors import CompileError

        try:
            return self.prepare()
        except CompileError as error:
            raise explained(self.file, error) from error


def _data_section(data: str, context: int | None) -> DataSection:
    """What --data names. Raises UsageError U-56 if it is nothing that a task file could name."""
    from pydantic import ValidationError

    from node.request.task_file import DataSection

    path = Path(data)
    if path.suffix == ".txt":
        given: dict[str, object] = {"text": path}
    else:
        given = {"file": path} if path.suffix or "/" in data else {"source": data}
    try:
        return DataSection.model_validate(given | ({"context": context} if context else {}))
    except ValidationError as error:
        hint = "mnist, digits, a .npz or .safetensors file; or moby-dick or a .txt file with --context"
        raise UsageError(f"--data {data}: {error.errors()[0]['msg']}", code="U-56", hint=hint) from error


def view_of(compiled: CompiledStep) -> ProgramView:
    return ProgramView(compiled.program, tuple(compiled.origins))


def find_program(call: Invocation, what: str) -> tuple[ProgramView, str]:
    """The program in the file of that name, or else of the task on chain; and a title for it.

    Raises UsageError U-50 if there is no such file, U-51 if it holds no program; and as for any task.
    """
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
            hint = "it was cut, altered, or is of another version"
            raise UsageError(f"{path} is not a whole program: {error}", code="U-51", hint=hint) from error
    if path.suffix or "/" in what:
        raise UsageError(f"no such file: {what}", code="U-50", hint="a step file (.py), a program, or a task id")
    return _program_of_task(call, what)


def _program_of_task(call: Invocation, what: str) -> tuple[ProgramView, str]:
    from node.cli.chain_view import find_task, hex_id
    from proofs.exact.encoding import decode_program

    with call.context() as context:
        from node.request.view import REQUESTER
        from node.taskbook import TaskBook

        spec = find_task(context, what).spec
        book = TaskBook(spec, context.reading_gateway, context.domain, context.client.node_of, None, REQUESTER)
        return ProgramView(decode_program(book.program())), f"task {hex_id(spec.task_id)[:10]}"


def explained(file: Path, error: CompileError) -> UsageError:
    """The first problem, for commands that go on only with a program."""
    count = len(error.problems)
    first = error.problems[0]
    where = (
        f"{Path(first.origin.location.file).name}:{first.origin.location.line}: " if first.origin.location.file else ""
    )
    more = f", and {count - 1} more" if count > 1 else ""
    return UsageError(
        f"{file.name} does not compile: {where}{first.why}{more}", code="U-55", hint=f"avenue program check {file}"
    )


def set_threads(threads: int) -> None:
    """Sizes the thread pools, unless torch is there already (a command run from within a process that uses it)."""
    from node.threads import pin_threads

    if "torch" not in sys.modules:
        pin_threads(threads)
