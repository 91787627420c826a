"""Log lines go to stderr, one per decision, as text or JSON; stdout stays the result's."""

from __future__ import annotations

import logging
import os
import sys

from node.config import LogConfig


def configure_logs(config: LogConfig) -> None:
    """Sets up structlog and the standard library's logging alike. Call it before an agent starts."""
    import structlog

    level = logging.getLevelNamesMapping()[config.level.upper()]
    plain = not sys.stderr.isatty() or bool(os.environ.get("NO_COLOR"))
    renderer = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=not plain)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
