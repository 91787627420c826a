"""The main job: deploy, run compute nodes, post a training task, kill a node, get a trained model, get paid.

    python -m scripts.demo [--task FILE] [--output build/demo.json] [--keep]

Real processes on a real chain: three compute nodes, a gateway and a requester, each an `avenue` command with a home
of its own. In the middle of the second round one node is killed with `kill -9`; another joins and takes its place. At
the end the state that the market produced is compared, bit for bit, with one process that ran the same plan, the
books are read back from the chain and checked to the wei, and the figures are left in build/demo.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eth_utils.address import to_checksum_address
from rich.console import Console
from rich.table import Table
from web3 import Web3

from node.request.task_file import load_task_file
from protocol import deployments
from protocol.amounts import show_avn
from protocol.chain import ChainClient
from protocol.deployments import Deployment
from protocol.types import TaskId, TaskSpec, TaskStatus, Unit, UnitStatus
from scripts.demo.ledger import Ledger, read_ledger
from scripts.demo.stage import REPO, Stage, free_port, wait_until

NODES = 3
BLOCK_TIME_S = 1
ROUND_OF_THE_CRASH = 1
TASK_LIMIT_S = 420.0
ACCURACY_LOSS_LIMIT = 0.01
"""Ten times what was measured on MNIST, and four of the 360 test images of the digits."""

console = Console(highlight=False)


@dataclass
class Play:
    """What the story has gathered so far."""

    task_file: Path
    started: float = field(default_factory=time.monotonic)
    killed: str | None = None
    joined: str | None = None
    references: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def say(self, text: str) -> None:
        console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/]  {text}")


def main() -> int:
    arguments = _arguments()
    # An orderly exit on SIGTERM too: the `with` below stops every process that was started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    play = Play(arguments.task.resolve())
    root = arguments.output.resolve().parent / "demo"
    shutil.rmtree(root, ignore_errors=True)
    with Stage(root) as stage:
        document = _play(play, stage)
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"\nFigures: {arguments.output}   model: {root / 'model.safetensors'}   logs: {root}")
        if not arguments.keep:
            console.print("To keep chain, gateway, nodes and the live page running: make demo DEMO_ARGS=--keep")
        else:
            console.print(f"Live page: {stage.gateway_url}   (Ctrl+C ends everything)")
            try:
                while True:
                    stage.check_all_live()
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
    return _verdict(document)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", type=Path, default=REPO / "examples" / "demo.toml", help="task file to post")
    parser.add_argument("--output", type=Path, default=REPO / "build" / "demo.json", help="where the figures go")
    parser.add_argument("--keep", action="store_true", help="leave chain, gateway and nodes running until Ctrl+C")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def _play(play: Play, stage: Stage) -> dict[str, Any]:
    console.rule("Avenue: a private training task on an open market")
    _fetch_data(play)
    stage.start_chain(block_time_s=BLOCK_TIME_S)
    play.say(f"chain 31337 at {stage.chain_url}, a block every {BLOCK_TIME_S} s")

    names = [f"machine-{number}" for number in range(1, NODES + 2)]
    with ThreadPoolExecutor() as pool:
        deploying = pool.submit(_deploy, play, stage)
        homes = [pool.submit(stage.actor, name, "compute") for name in names]
        homes.append(pool.submit(stage.actor, "requester", "request"))
        deployment = deploying.result()
        for home in homes:
            deployments.save(deployment, home.result().home / "deployments")
    play.say("keys made and encrypted for everybody; gas money sent")
    requester = stage.actors["requester"]
    with ThreadPoolExecutor() as pool:
        tokens = pool.submit(requester.run, "faucet", "--yes")
        _start_gateway(play, stage, deployment)
        for name in names[:NODES]:
            _start_node(play, stage, name)
        tokens.result()
    posted = requester.run("task", "submit", str(play.task_file), "--yes", "--detach")
    task = TaskId(bytes.fromhex(posted["task"][2:]))
    play.say(f"requester posted task {posted['task'][:10]}… with {show_avn(int(posted['escrow_wei']))} in escrow")
    stage.start(requester, "task", "run", posted["task"])

    client = ChainClient(stage.w3, deployment)
    spec = _spec_of(stage.w3, client, deployment, task)
    _follow(play, stage, client, spec)

    model = stage.root / "model.safetensors"
    with ThreadPoolExecutor() as pool:
        saved = pool.submit(requester.run, "task", "result", posted["task"], "-o", str(model))
        working = [stage.actors[name] for name in stage.processes if name.startswith("machine-")]
        withdrawn = [pool.submit(node.run, "compute", "withdraw", "--yes") for node in working]
        final_root = client.input_state_root(spec, spec.rounds)
        saved.result()
        play.say(f"trained model saved; its state root is the chain's: 0x{final_root.hex()[:16]}…")
        for each in withdrawn:
            each.result()
        play.say("nodes' earnings withdrawn to their owners' cold keys")

    exact, float32 = _references(play)
    ledger = read_ledger(stage.w3, deployment, task)
    accuracy = _accuracy_in_plain_torch(play, model)
    document = _document(play, ledger, accuracy, exact, float32, final_root)
    _print_story(play, spec, ledger, document)
    _save_page(stage)
    return document


def _fetch_data(play: Play) -> None:
    """Before anything runs, so that no node waits on a download. Cached by hash."""
    subprocess.run(
        [sys.executable, "-c", _LOAD_DATA, str(play.task_file)], cwd=REPO, check=True, stdin=subprocess.DEVNULL
    )
    play.say(f"task file {play.task_file.name}; its data is here")


_LOAD_DATA = (
    "import sys\n"
    "from node.request.task_file import load_task_file\n"
    "from node.training.datasets import load_dataset\n"
    "load_dataset(load_task_file(sys.argv[1]).data)\n"
)


def _deploy(play: Play, stage: Stage) -> Deployment:
    deployer = stage.actor("deployer", "deployer")
    deployer.run("deploy", "--yes")
    deployment = deployments.load(31337, deployer.home / "deployments")
    play.say(f"contracts deployed: market {deployment.market}, registry {deployment.registry}")
    return deployment


def _start_gateway(play: Play, stage: Stage, deployment: Deployment) -> None:
    port = free_port()
    actor = stage.keyless_actor("gateway")
    deployments.save(deployment, actor.home / "deployments")
    stage.start(actor, "market", "serve", "--port", str(port))
    stage.gateway_url = f"http://127.0.0.1:{port}"
    for other in stage.actors.values():
        other.env["AVENUE_GATEWAY_URL"] = stage.gateway_url
    wait_until("the gateway", lambda: _answers(f"{stage.gateway_url}/readyz"), timeout_s=30)
    play.say(f"gateway and live page at [bold]{stage.gateway_url}[/]")


def _answers(url: str) -> bool:
    import httpx2

    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def _start_node(play: Play, stage: Stage, name: str) -> None:
    stage.start(stage.actors[name], "compute", "start")
    play.say(f"{name} started: it registers, stakes and looks for work")


def _spec_of(w3: Web3, client: ChainClient, deployment: Deployment, task: TaskId) -> TaskSpec:
    from protocol.abi import artifact

    market = w3.eth.contract(address=to_checksum_address(deployment.market), abi=artifact("TaskMarket").abi)
    (log,) = market.events.TaskPosted().get_logs(from_block=deployment.block, argument_filters={"task": bytes(task)})
    values = log["args"]["spec"]
    return TaskSpec.from_abi(tuple(values.values()) if hasattr(values, "values") else tuple(values))


def _follow(play: Play, stage: Stage, client: ChainClient, spec: TaskSpec) -> None:
    """Tells what happens until the task is closed; kills one node in mid-round and starts another."""
    told: dict[int, tuple[int, UnitStatus]] = {}
    deadline = time.monotonic() + TASK_LIMIT_S
    while client.task(spec.task_id).status is not TaskStatus.CLOSED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the task was not closed within {TASK_LIMIT_S:.0f} s; see the logs in {stage.root}")
        stage.check_all_live()
        for round_, units in enumerate(client.rounds(spec, range(spec.rounds))):
            for shard, unit in enumerate(units):
                index = spec.unit_index(round_, shard)
                before = told.get(index)
                if unit.node and (unit.attempt, unit.status) != before:
                    told[index] = (unit.attempt, unit.status)
                    _tell(play, spec, round_, shard, unit, before)
                crash_now = round_ == ROUND_OF_THE_CRASH and shard < spec.shards and play.killed is None
                if crash_now and unit.status is UnitStatus.CLAIMED:
                    _crash(play, stage, client, unit)
        time.sleep(0.25)
    play.say("all units settled; the task is closed")


def _tell(
    play: Play, spec: TaskSpec, round_: int, shard: int, unit: Unit, before: tuple[int, UnitStatus] | None
) -> None:
    what = "average" if spec.shards > 1 and shard == spec.shards else f"shard {shard}"
    where = f"round {round_ + 1}/{spec.rounds} {what}"
    if unit.status is UnitStatus.OPEN and before is not None:
        play.say(f"[red]{where}: its worker is gone; the unit is open again, the collateral is forfeit[/]")
    elif unit.status is UnitStatus.CLAIMED:
        play.say(f"{where}: claimed by node {unit.node}" + (f" (attempt {unit.attempt + 1})" if unit.attempt else ""))
    elif unit.status is UnitStatus.REVEALED:
        play.say(f"{where}: revealed, state 0x{unit.final_state_root.hex()[:12]}…")


def _crash(play: Play, stage: Stage, client: ChainClient, unit: Unit) -> None:
    """kill -9 for the node that holds `unit`; a newcomer starts at once."""
    operator = client.node(unit.node).operator
    for name in [name for name in stage.processes if name.startswith("machine-")]:
        if to_checksum_address(stage.actors[name].addresses["operator"]) == operator:
            stage.kill(name)
            play.killed = name
            play.say(f"[red]kill -9 {name} (node {unit.node}) in the middle of its unit[/]")
            newcomer = f"machine-{NODES + 1}"
            play.joined = newcomer
            _start_node(play, stage, newcomer)
            _start_references(play, stage)
            return


def _start_references(play: Play, stage: Stage) -> None:
    """The same plan in one process and the same network in float32, while the market waits for the lost worker."""
    for kind in ("exact", "float32"):
        command = ["nice", sys.executable, "-m", "scripts.demo.reference", kind, str(play.task_file)]
        play.references.append(subprocess.Popen(command, cwd=REPO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
    stage.processes.update({f"reference-{i}": process for i, process in enumerate(play.references)})
    play.say("meanwhile, to compare: the same plan in one process, and the same network in float32")


def _references(play: Play) -> tuple[dict[str, Any], dict[str, Any]]:
    documents = []
    for process in play.references:
        out, _ = process.communicate(timeout=600)
        if process.returncode != 0:
            raise RuntimeError("a reference run failed; its error is above")
        documents.append(json.loads(out))
    return documents[0], documents[1]


def _accuracy_in_plain_torch(play: Play, model: Path) -> float:
    """Loads the saved file as its owner would, into ordinary torch modules or the step file's, and tests it."""
    script = _TEST_MLP if load_task_file(play.task_file).model.file is None else _TEST_STEP_FILE
    done = subprocess.run(
        [sys.executable, "-c", script, str(play.task_file), str(model)], cwd=REPO, capture_output=True, check=True
    )
    return float(json.loads(done.stdout))


_TEST_MLP = (
    "import sys, json, torch\n"
    "from safetensors.torch import load_file\n"
    "from node.request.task_file import load_task_file\n"
    "from node.training.datasets import load_dataset\n"
    "task = load_task_file(sys.argv[1]); data = load_dataset(task.data)\n"
    "sizes = [data.features, *task.model.hidden, data.classes]\n"
    "layers = []\n"
    "for a, b in zip(sizes, sizes[1:]): layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]\n"
    "net = torch.nn.Sequential(*layers[:-1]); net.load_state_dict(load_file(sys.argv[2]))\n"
    "x = torch.from_numpy(data.scale.to_float(data.test.x)); y = torch.from_numpy(data.test.y)\n"
    "print(json.dumps(float((net(x).argmax(1) == y).double().mean())))\n"
)
_TEST_STEP_FILE = (
    "import sys, json\n"
    "from pathlib import Path\n"
    "from node.request.task_file import load_task_file\n"
    "from node.training.datasets import load_dataset\n"
    "from node.training.float32 import evaluate\n"
    "from node.training.step_file import load_step_file\n"
    "from node.training.weights import pretrained\n"
    "task = load_task_file(sys.argv[1]); data = load_dataset(task.data)\n"
    "step = load_step_file(task.model.file, task.training.seed)\n"
    "params = pretrained(step.initial(task.training.seed)[0], Path(sys.argv[2]))\n"
    "print(json.dumps(evaluate(step, params, data.numbers(data.test))['accuracy']))\n"
)


def _document(
    play: Play, ledger: Ledger, accuracy: float, exact: dict[str, Any], float32: dict[str, Any], final_root: bytes
) -> dict[str, Any]:
    money = ledger.money
    return {
        "accuracy": accuracy,
        "float32_accuracy": float32["accuracy"],
        "final_state_root": "0x" + final_root.hex(),
        "single_process_root": exact["final_state_root"],
        "escrow_in": str(money.escrow_in),
        "paid": str(money.paid),
        "refunded": str(money.refunded),
        "burned": str(money.burned),
        "money": {
            "posted_escrow": str(money.escrow),
            "forfeited_collateral": str(money.forfeited),
            "paid_to_nodes": str(money.to_nodes),
            "tips_to_reporters": str(money.to_reporters),
            "unspent_escrow_to_requester": str(money.to_requester_unspent),
            "delay_compensation_to_requester": str(money.to_requester_compensation),
        },
        "gas": ledger.gas,
        "nodes": {
            str(account.node): {
                "units": account.units,
                "earned": str(account.earned),
                "slashed": str(account.slashed),
                "tips": str(account.tips),
            }
            for account in ledger.nodes
        },
        "killed": play.killed,
        "joined": play.joined,
        "wall_s": round(time.monotonic() - play.started, 1),
    }


def _print_story(play: Play, spec: TaskSpec, ledger: Ledger, document: dict[str, Any]) -> None:
    console.rule("What it came to")
    console.print(
        f"Accuracy on the test images: [bold]{document['accuracy']:.4f}[/] exact on the market, "
        f"{document['float32_accuracy']:.4f} float32 PyTorch with the same data order"
    )
    same = document["final_state_root"] == document["single_process_root"]
    console.print(
        f"Final state root  {document['final_state_root']}\n"
        f"In one process    {document['single_process_root']}  " + ("[green]equal[/]" if same else "[red]DIFFERENT[/]")
    )
    nodes = Table("node", "units paid", "earned", "tips", "slashed", title="Who was paid, who was slashed")
    for account in ledger.nodes:
        nodes.add_row(
            str(account.node),
            str(account.units),
            show_avn(account.earned),
            show_avn(account.tips),
            show_avn(account.slashed),
        )
    console.print(nodes)
    console.print(_money_table(ledger))
    gas = Table("transaction", "times", "gas (median, whole transaction)", title="Gas")
    for name, used in ledger.gas.items():
        gas.add_row(name, str(ledger.calls[name]), f"{used:,}")
    console.print(gas)


def _money_table(ledger: Ledger) -> Table:
    money = ledger.money
    table = Table("in", "", "out", "", title="The task's account, from chain reads alone")
    rows = [
        ("escrow posted", money.escrow, "paid to nodes", money.to_nodes),
        ("collateral forfeited", money.forfeited, "tips to who re-opened units", money.to_reporters),
        ("", None, "unspent escrow to requester", money.to_requester_unspent),
        ("", None, "delay compensation to requester", money.to_requester_compensation),
        ("", None, "burned", money.burned),
        ("total", money.escrow_in, "total", money.paid + money.refunded + money.burned),
    ]
    for left, amount_in, right, amount_out in rows:
        table.add_row(left, "" if amount_in is None else show_avn(amount_in), right, show_avn(amount_out))
    return table


def _save_page(stage: Stage) -> None:
    """The live page as it was at the end, for who comes later."""
    import httpx2

    (stage.root / "dashboard.html").write_text(httpx2.get(stage.gateway_url, timeout=10).text, encoding="utf-8")


def _verdict(document: dict[str, Any]) -> int:
    """0 if the demo showed what it promises; else says what it did not."""
    out = int(document["paid"]) + int(document["refunded"]) + int(document["burned"])
    claims = {
        "the market's final state equals the single process's": document["final_state_root"]
        == document["single_process_root"],
        "escrow in = paid + refunded + burned, to the wei": int(document["escrow_in"]) == out,
        "a node was killed in mid-round and another joined": bool(document["killed"] and document["joined"]),
        f"accuracy at most {ACCURACY_LOSS_LIMIT:.0%} below float32's": document["accuracy"]
        >= document["float32_accuracy"] - ACCURACY_LOSS_LIMIT,
    }
    for claim, holds in claims.items():
        console.print(("[green]✓[/] " if holds else "[red]✗[/] ") + claim)
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
