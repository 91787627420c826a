"""The gateway as a web application: parts are put together here and nowhere else.

It keeps no key and takes no custody: what it loses can be uploaded, sent or read from the chain again. `create_app`
needs a chain client, or makes one from the settings; `serve` runs the application until it is told to stop.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import uvicorn
from eth_typing import ChecksumAddress
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from marketplace import failures
from marketplace.config import Settings
from marketplace.content import ContentStore, StoreLimits
from marketplace.deps import Gateway
from marketplace.indexer import Indexer
from marketplace.limits import RateLimiter
from marketplace.mailbox import Mailbox
from marketplace.metrics import Metrics
from marketplace.queries import Queries
from marketplace.routes import api, blobs, health, messages, pages, stream
from marketplace.standing import Roll
from marketplace.tables import TaskRow, open_database
from protocol.chain import ChainClient
from protocol.deployments import load as load_deployment
from protocol.errors import UnreachableError
from protocol.messages import Domain
from protocol.rpc import connect
from protocol.wire import API_PREFIX

_log = structlog.get_logger(__name__)


def connect_chain(settings: Settings) -> ChainClient:
    """The chain of the settings. Raises ConfigError (no deployment, wrong chain) and UnreachableError."""
    deployment = load_deployment(settings.chain_id, settings.deployment_dir)
    return ChainClient(connect(list(settings.rpc_urls), settings.chain_id), deployment)


def build_gateway(settings: Settings, client: ChainClient) -> Gateway:
    """Puts the parts together; nothing runs yet. Raises BlobError if the content store's files were altered."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_database(settings.database)
    limits, deployment, metrics = settings.limits, client.deployment, Metrics()
    store = ContentStore(
        settings.data_dir / "blobs",
        StoreLimits(
            max_blob_bytes=limits.max_blob_bytes,
            quota_bytes=limits.quota_bytes,
            sender_quota_bytes=limits.sender_quota_bytes,
            incomplete_ttl_s=limits.incomplete_ttl_s,
            blobs_per_sender=limits.blobs_per_sender,
        ),
    )
    indexer = Indexer(
        engine, client, metrics, confirmations=settings.confirmations, poll_interval_s=settings.poll_interval_s
    )
    roll = Roll(
        node_of=client.node_of,
        requester_of=lambda task: _requester_of(engine, indexer, task),
        balance_of=client.token_balance,
        upload_min_balance_wei=limits.upload_min_balance_wei,
    )
    return Gateway(
        settings=settings,
        deployment=deployment,
        store=store,
        mailbox=Mailbox(engine, store, Domain(deployment.chain_id, deployment.market), roll, limits),
        indexer=indexer,
        queries=Queries(engine, store, lambda: indexer.indexed_block),
        metrics=metrics,
        posts=RateLimiter(limits.requests_per_minute),
        closing=threading.Event(),
        engine=engine,
    )


def _requester_of(engine: Engine, indexer: Indexer, task: bytes) -> ChecksumAddress | None:
    """From the index; a task that it does not know may have been posted a moment ago, so the chain is read first."""
    for known_now in (True, False):
        with Session(engine) as session:
            row = session.get(TaskRow, task)
        if row is not None:
            return ChecksumAddress(row.requester)  # type: ignore[arg-type]
        if known_now:
            indexer.catch_up(patience_s=5)
    return None


def create_app(settings: Settings, *, client: ChainClient | None = None) -> FastAPI:
    """The application. The index starts and stops with it. Raises ConfigError, UnreachableError."""
    gateway = build_gateway(settings, connect_chain(settings) if client is None else client)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        gateway.indexer.start()
        yield
        gateway.closing.set()
        await run_in_threadpool(gateway.indexer.stop)
        gateway.engine.dispose()

    app = FastAPI(
        title="Avenue gateway",
        version="0.1.0",
        summary="Blobs, signed messages and an index of the chain. A convenience: believe the chain, not this.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from somebody else's servers
        redoc_url=None,
    )
    app.state.gateway = gateway
    failures.install(app)
    _count_requests(app, gateway.metrics)
    for router in (api.router, blobs.router, messages.router):
        app.include_router(router, prefix=API_PREFIX)
    for router in (health.router, pages.router, stream.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=pages.HERE / "static"), name="static")
    return app


def _count_requests(app: FastAPI, metrics: Metrics) -> None:
    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        metrics.requests.labels(request.method, str(response.status_code)).inc()
        return response


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UnreachableError N-10 if the port is taken or the address is not this machine's."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise UnreachableError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            code="N-10",
            hint="stop what uses the port, or set another `port` in the settings",
        ) from error


def serve(settings: Settings, *, client: ChainClient | None = None) -> None:
    """Runs the gateway until SIGINT or SIGTERM. The port is taken before anything else starts."""
    with listen(settings.host, settings.port) as server:
        app = create_app(settings, client=client)
        _log.info("gateway listens", url=f"http://{settings.host}:{server.getsockname()[1]}")
        gateway: Gateway = app.state.gateway
        uvicorn_server = _Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, server_header=False), gateway.closing
        )
        uvicorn_server.run(sockets=[server])


class _Server(uvicorn.Server):
    """Tells endless answers to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, closing: threading.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)
