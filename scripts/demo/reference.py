"""What the market's result is compared with: the same plan in one process, and the same network in float32.

Run as a process of its own (`python -m scripts.demo.reference exact|float32 TASK`), one thread, so that both can run
at once and neither shares memory with the nodes. Prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from node.threads import pin_threads, run_settings

pin_threads(1)

from node.request.task_file import load_task_file  # noqa: E402  threads are pinned before torch is imported
from node.training.float32 import evaluate, train_float32  # noqa: E402
from node.training.plan import prepare_plan, run_plan  # noqa: E402
from proofs.exact.state import state_root  # noqa: E402


def main() -> None:
    kind, task_file = sys.argv[1], Path(sys.argv[2])
    plan = prepare_plan(load_task_file(task_file))
    if plan.dataset.test is None:
        raise SystemExit(f"{task_file} has no test samples to compare on")
    test = plan.dataset.numbers(plan.dataset.test)
    started = time.monotonic()
    if kind == "exact":
        state = run_plan(plan, settings=run_settings()).final_state
        seconds = time.monotonic() - started
        params = plan.compiled.decode_params(state)
        document = {**evaluate(plan.step, params, test), "final_state_root": "0x" + state_root(state).hex()}
    else:
        params = train_float32(plan)
        seconds = time.monotonic() - started
        document = {**evaluate(plan.step, params, test)}
    print(json.dumps({**document, "train_s": round(seconds, 2)}))


if __name__ == "__main__":
    main()
