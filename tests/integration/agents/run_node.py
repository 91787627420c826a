"""A Compute Node as a process, for tests that kill it: RPC URL, gateway URL, deployments, home, dev account."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from node.threads import pin_threads

pin_threads(1)

from node.compute.agent import ComputeAgent  # noqa: E402 (threads are pinned before torch is imported)
from node.config import Role, load_config  # noqa: E402
from node.context import NodeContext  # noqa: E402


def main() -> None:
    rpc_url, gateway_url, deployments, home, account = sys.argv[1:6]
    flags = {
        "role": "compute",
        "rpc_urls": [rpc_url],
        "gateway_url": gateway_url,
        "networks.local.deployments_dir": deployments,
        "compute.poll_interval_s": 0.2,
    }
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    loaded = load_config(Path(home), flags=flags, environ={})
    with NodeContext(loaded, role=Role.COMPUTE, dev_account_index=int(account)) as context:
        ComputeAgent(context).run(stop)


if __name__ == "__main__":
    main()
