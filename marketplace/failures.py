"""One error shape for every refusal: `{"ok":false,"error":{"code","message","hint"}}` and the HTTP status that fits."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from marketplace.content import StorageFullError, UnknownBlobError
from marketplace.limits import TooManyRequestsError
from protocol import errors
from protocol.errors import AvenueError
from protocol.wire import ErrorAnswer, ErrorBody

_log = structlog.get_logger(__name__)

# The most special class first: the first one that fits an error gives its status.
_STATUS: tuple[tuple[type[AvenueError], int], ...] = (
    (StorageFullError, 507),
    (UnknownBlobError, 404),
    (TooManyRequestsError, 429),
    (errors.SignerMismatchError, 401),
    (errors.StandingError, 403),
    (errors.ReplayError, 409),
    (errors.MessageMismatchError, 422),
    (errors.BlobError, 422),
    (errors.VerificationError, 400),
    (errors.UsageError, 400),
    (errors.StateError, 404),
    (errors.UnreachableError, 503),
)
_TOO_LARGE_CODES = {"V-12"}


def status_of(error: AvenueError) -> int:
    """The HTTP status of an error of the tree; 500 for one that no request can cause."""
    if error.code in _TOO_LARGE_CODES:
        return 413
    return next((status for error_class, status in _STATUS if isinstance(error, error_class)), 500)


def error_response(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorAnswer(error=body).model_dump(mode="json"), status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Makes every way to fail answer in the one shape."""

    @app.exception_handler(AvenueError)
    async def _avenue(_request: Request, error: AvenueError) -> JSONResponse:
        headers = (
            {"Retry-After": str(max(1, round(error.retry_after_s)))}
            if isinstance(error, TooManyRequestsError)
            else None
        )
        return error_response(status_of(error), ErrorBody.of(error), headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return error_response(422, ErrorBody(code="U-70", message=f"{where}: {first['msg']}", hint="see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> JSONResponse:
        body = ErrorBody(code=f"U-{error.status_code}", message=str(error.detail), hint="see /openapi.json")
        return error_response(error.status_code, body, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed by a bug", path=request.url.path, error=repr(error))
        hint = "this is a bug of the gateway; its log says more"
        return error_response(500, ErrorBody(code="X-00", message="internal error", hint=hint))
