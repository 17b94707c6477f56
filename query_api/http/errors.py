"""The one shape of every error, and the closed list of codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from query_api.http.responses import json_answer

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "VALIDATION_ERROR": HTTPStatus.BAD_REQUEST,
    "UNAUTHORIZED": HTTPStatus.UNAUTHORIZED,
    "FORBIDDEN": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "METHOD_NOT_ALLOWED": HTTPStatus.METHOD_NOT_ALLOWED,
    "PAYLOAD_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "UNSUPPORTED_MEDIA_TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "RATE_LIMITED": HTTPStatus.TOO_MANY_REQUESTS,
    "INTERNAL_ERROR": HTTPStatus.INTERNAL_SERVER_ERROR,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}


class ApiError(Exception):
    """A request that is answered with an error. `message` and `details` are for the caller and say nothing internal.

    `headers` are added to the answer; `reason` is a word of a closed set for the log.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = int(STATUS_OF_CODE[code])
        self.message = message
        self.details = details
        self.headers = headers
        self.reason = reason

    def answer(self) -> web.Response:
        """The HTTP response for this error."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details is not None:
            body["details"] = self.details
        return json_answer(body, status=self.status, headers=self.headers)


def invalid(message: str, **details: Any) -> ApiError:
    """400: the request itself is wrong, and sending it again will not help."""
    return ApiError("VALIDATION_ERROR", message, details=details or None)


def unavailable(message: str, retry_after: int, reason: str | None = None) -> ApiError:
    """503: the same request may work after `retry_after` seconds."""
    return ApiError("UNAVAILABLE", message, headers={"Retry-After": str(max(1, retry_after))}, reason=reason)


def rate_limited(message: str, retry_after: int, headers: Mapping[str, str] | None = None) -> ApiError:
    """429 (RFC 6585 section 4): the caller takes more than its share."""
    return ApiError("RATE_LIMITED", message, headers={**(headers or {}), "Retry-After": str(max(1, retry_after))})


def not_found(message: str = "There is nothing at this path. GET /openapi.json lists what there is.") -> ApiError:
    """404, without the path: what is echoed can be abused."""
    return ApiError("NOT_FOUND", message)


def method_not_allowed(allowed: Iterable[str]) -> ApiError:
    """405 with the Allow header that RFC 9110 section 15.5.6 asks for."""
    methods = ", ".join(sorted(allowed))
    return ApiError("METHOD_NOT_ALLOWED", f"This path takes {methods}.", headers={"Allow": methods})


def too_large(message: str) -> ApiError:
    """413: send less at a time."""
    return ApiError("PAYLOAD_TOO_LARGE", message)


def internal() -> ApiError:
    """500: our fault; what happened is in the log under the request id."""
    return ApiError("INTERNAL_ERROR", "Something went wrong here. The log has the cause under this request's id.")


def unreadable() -> ApiError:
    """400 for what is no HTTP request, or one with a line or headers beyond the limits."""
    return invalid("The request could not be read: its request line or a header is malformed or too long.")
