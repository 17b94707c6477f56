"""HTTP in front of the engine, as ClickHouse speaks it: parameters in, status, headers and exception texts out."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hmac
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import lz4.frame
from aiohttp import web
from backports import zstd

from tests.support.bridge.engine import Engine, Reply, Request
from tests.support.bridge.errors import (
    AUTHENTICATION_FAILED,
    CANNOT_DECOMPRESS,
    NOT_IMPLEMENTED,
    READONLY,
    EngineError,
    refusal,
)
from tests.support.bridge.faults import Faults, Mode
from tests.support.bridge.replica import Replica
from tests.support.bridge.statement import parse_statement

WORKERS: Final = 16
MAX_BODY_BYTES: Final = 1024**3
MAX_URI_BYTES: Final = 1024**2  # ClickHouse's own limit
# Consumed by the HTTP interface; every other parameter is a setting.
_RESERVED: Final = frozenset({
    "query", "database", "default_format", "user", "password", "quota_key", "role", "query_id",
    "session_id", "session_timeout", "session_check", "close_session", "wait_end_of_query", "buffer_size",
    "compress", "decompress", "stacktrace", "client_protocol_version",
})  # fmt: skip
_CONTENT_TYPES: Final = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "JSON": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
}


class Server:
    """The handlers of one bridge; `user` and `password` are the only credentials it accepts."""

    def __init__(self, engine: Engine | Replica, user: str, password: str) -> None:
        self._engine = engine
        self._behind = engine.engine if isinstance(engine, Replica) else engine
        self._credentials = (user, password)
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="engine")
        self._faults = Faults()

    def application(self) -> web.Application:
        """The aiohttp application with the ClickHouse interface on `/` and the test controls on `/_bridge/`."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/ping", self._ping)
        app.router.add_post("/_bridge/fail", self._fail)
        app.router.add_post("/_bridge/reset", self._reset)
        app.router.add_post("/_bridge/profile", self._profile)
        app.router.add_post("/_bridge/pretend", self._pretend)
        app.router.add_post("/_bridge/replica", self._replica)
        app.router.add_get("/_bridge/wait_hanging", self._wait_hanging)
        app.router.add_route("*", "/", self._query)
        return app

    def close(self) -> None:
        """Waits for statements under way."""
        self._threads.shutdown()

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _query(self, request: web.Request) -> web.StreamResponse:
        headers = {
            "X-ClickHouse-Server-Display-Name": "bridge",
            "X-ClickHouse-Query-Id": request.query.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            self._authenticate(request)
            if request.method == "GET" and "query" not in request.query:
                return web.Response(text="Ok.\n")
            reply = await self._run(await _parse(request))
        except EngineError as error:
            headers["X-ClickHouse-Exception-Code"] = str(error.code)
            text = f"{error} (version {self._engine.version} (official build))\n"
            return web.Response(status=error.status, headers=headers, text=text)
        except ConnectionAbortedError:
            if request.transport is not None:
                request.transport.abort()
            raise
        headers["X-ClickHouse-Summary"] = json.dumps({name: str(value) for name, value in reply.summary.items()})
        if reply.format:
            headers["X-ClickHouse-Format"] = reply.format
        headers["Content-Type"] = _CONTENT_TYPES.get(reply.format, "application/octet-stream")
        return web.Response(body=reply.body, headers=headers)

    async def _run(self, query: Request) -> Reply:
        fault = self._faults.take(query.statement)
        if fault is Mode.BEFORE or (fault is Mode.HANG and not await self._faults.hang()):
            raise self._faults.refused()
        try:
            reply = await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.execute, query)
        finally:
            if fault is Mode.HANG:
                await self._faults.landed()
        if fault is Mode.AFTER:
            raise self._faults.unknown()
        if fault is Mode.DROP:
            raise ConnectionAbortedError
        return reply

    def _authenticate(self, request: web.Request) -> None:
        headers, parameters = request.headers, request.query
        if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
            given = (headers.get("X-ClickHouse-User", ""), headers.get("X-ClickHouse-Key", ""))
        elif "Authorization" in headers:
            given = _basic(headers["Authorization"])
        else:
            given = (parameters.get("user", ""), parameters.get("password", ""))
        given = (given[0] or "default", given[1])
        if not all(hmac.compare_digest(a.encode(), b.encode()) for a, b in zip(given, self._credentials, strict=True)):
            raise _wrong_credentials(given[0])

    async def _fail(self, request: web.Request) -> web.Response:
        try:
            mode, count = Mode(request.query.get("mode", "before")), int(request.query.get("next", "1"))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        await self._faults.arm(mode, count, request.query.get("table", ""))
        return web.Response(text="Ok.\n")

    async def _reset(self, request: web.Request) -> web.Response:
        await self._faults.reset(land=request.query.get("land") == "1")
        return web.Response(text="Ok.\n")

    async def _profile(self, request: web.Request) -> web.Response:
        self._behind.profile = dict(request.query)
        return web.Response(text="Ok.\n")

    async def _pretend(self, request: web.Request) -> web.Response:
        self._behind.pretended = dict(request.query)
        return web.Response(text="Ok.\n")

    async def _replica(self, request: web.Request) -> web.Response:
        if not isinstance(self._engine, Replica):
            raise web.HTTPBadRequest(text="this bridge is no replica\n")
        self._engine.control(fetches=request.query["fetches"] == "1", lag=float(request.query["lag"]))
        return web.Response(text="Ok.\n")

    async def _wait_hanging(self, request: web.Request) -> web.Response:
        await self._faults.wait_hanging(int(request.query.get("count", "1")))
        return web.Response(text="Ok.\n")


async def _parse(request: web.Request) -> Request:
    """Reads a statement from URL, form or body, in the order ClickHouse puts them together. Raises EngineError."""
    parameters = dict(request.query)
    if parameters.get("compress", "0") != "0" or parameters.get("decompress", "0") != "0":
        raise refusal(NOT_IMPLEMENTED, "The bridge does not know ClickHouse's own block compression.")
    if request.content_type == "multipart/form-data":
        parameters |= await _form(request)
        body = b""
    else:
        try:
            body = _decompressed(await request.read(), request.headers.get("Content-Encoding", ""))
        except (EOFError, OSError, RuntimeError, zlib.error, zstd.ZstdError) as error:
            raise refusal(CANNOT_DECOMPRESS, f"Cannot decompress the request: {error}.") from error
    query = parameters.get("query", "").encode()
    statement = parse_statement(b"\n".join(part for part in (query, body) if part))
    if request.method == "GET" and not statement.returns_rows:
        raise refusal(READONLY, "Cannot execute query in readonly mode: method GET implies readonly.")
    return Request(
        statement=statement,
        default_format=_named(request, parameters, "default_format", "X-ClickHouse-Format") or "TabSeparated",
        database=_named(request, parameters, "database", "X-ClickHouse-Database"),
        settings={
            name: value for name, value in parameters.items() if name not in _RESERVED and not name.startswith("param_")
        },
        parameters={name[6:]: value for name, value in parameters.items() if name.startswith("param_")},
        session_id=parameters.get("session_id", ""),
        session_timeout=float(parameters.get("session_timeout", "60")),
        session_check=parameters.get("session_check") == "1",
    )


def _named(request: web.Request, parameters: Mapping[str, str], name: str, header: str) -> str:
    return parameters.get(name) or request.headers.get(header) or ""


async def _form(request: web.Request) -> dict[str, str]:
    """The text fields of a form; long queries and parameters come this way."""
    fields = {}
    for name, value in (await request.post()).items():
        if not isinstance(value, str):
            raise refusal(NOT_IMPLEMENTED, "The bridge does not know external tables.")
        fields[name] = value
    return fields


def _decompressed(body: bytes, encoding: str) -> bytes:
    """The whole body, however many frames it was compressed in: clients send one frame per block."""
    match encoding.lower():
        case "" | "identity":
            return body
        case "lz4":
            return _unframed(body, lz4.frame.LZ4FrameDecompressor)
        case "zstd":
            return _unframed(body, zstd.ZstdDecompressor)
        case "gzip":
            return gzip.decompress(body)
    raise refusal(NOT_IMPLEMENTED, f"Unknown compression method: {encoding}.")


def _unframed(body: bytes, decompressor: Callable[[], Any]) -> bytes:
    blocks = []
    while body:
        frame = decompressor()
        blocks.append(frame.decompress(body))
        if not frame.eof:
            raise EOFError("the last frame is cut off")
        body = frame.unused_data or b""
    return b"".join(blocks)


def _basic(header: str) -> tuple[str, str]:
    """User and password of RFC 7617's scheme."""
    scheme, _, encoded = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if scheme.lower() != "basic" or not colon:
        raise refusal(AUTHENTICATION_FAILED, "Invalid authentication: the Authorization header is not Basic.")
    return user, password


def _wrong_credentials(user: str) -> EngineError:
    return refusal(
        AUTHENTICATION_FAILED,
        f"{user}: Authentication failed: password is incorrect, or there is no user with such name.",
    )
