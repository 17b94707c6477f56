"""The embedded engine behind the bridge: a pool of connections, sessions, and one request at a time on each."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import chdb

from tests.support.bridge.errors import (
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    UNKNOWN_SETTING,
    EngineError,
    from_engine,
    refusal,
)
from tests.support.bridge.statement import Statement

_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IN_BACKGROUND: Final = "run_query_in_background"
DEFAULT_DATABASE: Final = "default"
_QUOTE: Final = "'"


@dataclass(frozen=True, slots=True)
class Request:
    """One statement and everything sent along with it. `settings` and `parameters` hold texts, as they came."""

    statement: Statement
    default_format: str = "TabSeparated"
    database: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    session_id: str = ""
    session_timeout: float = 60.0  # seconds
    session_check: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The result in its format, and the figures of ClickHouse's summary header."""

    body: bytes
    format: str  # empty for a statement that has no result
    summary: Mapping[str, int]


class Engine:
    """Runs requests on the engine at `path`. Thread-safe; raises EngineError.

    Requests without a session share a pool; a session keeps a connection, and so its settings and temporary tables,
    until it has been idle for its time-out. A setting changed by `SET` inside a session goes back to its default once
    a request of that session has named the same setting in its URL.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._sessions: dict[str, _Session] = {}
        self.profile: Mapping[str, str] = {}  # settings of the user, which those of a request override
        self.pretended: Mapping[str, str] = {}  # what stands in statements -> what is run instead of it
        self._anchor = chdb.connect(self._path)  # the engine shuts down with its last connection
        self.version, self.timezone = (
            self._anchor.query("SELECT version(), timezone()", "TabSeparated").bytes().decode().strip().split("\t")
        )

    def execute(self, request: Request) -> Reply:
        """Runs one request to its end."""
        with self._session(request) if request.session_id else self._pooled(request) as connection:
            connection.prepare(request, {**self.profile, **request.settings})
            return connection.run(self._pretending(request))

    def _pretending(self, request: Request) -> Request:
        sql = request.statement.sql
        for said, run in self.pretended.items():
            sql = sql.replace(said.encode(), run.encode())
        if sql == request.statement.sql or request.statement.data is not None:
            return request
        return replace(request, statement=replace(request.statement, sql=sql))

    def close(self) -> None:
        """Closes every connection; no request may be under way."""
        for session in self._sessions.values():
            session.connection.close()
        for connection in self._idle:
            connection.close()
        self._anchor.close()

    @contextmanager
    def _pooled(self, request: Request) -> Iterator[_Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = _Connection(self._path)
        try:
            yield connection
        finally:
            if request.statement.changes_connection:
                connection.close()
            else:
                with self._lock:
                    self._idle.append(connection)

    @contextmanager
    def _session(self, request: Request) -> Iterator[_Connection]:
        name = request.session_id
        with self._lock:
            self._expire()
            session = self._sessions.get(name)
            if session is None and request.session_check:
                raise refusal(SESSION_NOT_FOUND, f"Session {name} not found.")
            if session is None:
                session = self._sessions[name] = _Session(_Connection(self._path))
            if session.busy:
                raise refusal(SESSION_IS_LOCKED, f"Session {name} is locked by a concurrent client.")
            session.busy = True
        try:
            yield session.connection
        finally:
            session.expires = time.monotonic() + request.session_timeout
            session.busy = False

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, session in self._sessions.items() if not session.busy and session.expires < now]:
            self._sessions.pop(name).connection.close()


class _Connection:
    """One engine connection and what has been set on it. Not safe for two requests at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._raw = chdb.connect(self._path)
        self._settings: dict[str, str] = {}
        self._database = DEFAULT_DATABASE

    def close(self) -> None:
        self._raw.close()

    def prepare(self, request: Request, settings: Mapping[str, str]) -> None:
        """Makes the database of the request and exactly these settings hold.

        They stay until the next request: most carry the same ones, so most requests cost no extra statement.
        """
        database = request.database or ("" if request.session_id else DEFAULT_DATABASE)
        if database and database != self._database:
            self._query(f"USE {_escaped(database, '`')}")
            self._database = database
        self._reset(self._settings.keys() - settings.keys())
        # `readonly` last: it forbids to set anything after it.
        for name, value in sorted(settings.items(), key=lambda item: item[0] == "readonly"):
            if self._settings.get(name) == value:
                continue
            if not _SETTING_NAME.fullmatch(name):
                raise refusal(UNKNOWN_SETTING, f"Unknown setting '{name}'.")
            if name == _IN_BACKGROUND and value == "0":
                continue  # the one that no SET takes
            self._query(f"SET {name} = {_escaped(value, _QUOTE)}")
            self._settings[name] = value

    def run(self, request: Request) -> Reply:
        statement = request.statement
        started = time.perf_counter_ns()
        if statement.data is None:
            result = self._query(statement.sql, request.default_format, dict(request.parameters))
        else:
            result = self._insert(statement, statement.data)
        read_rows, read_bytes = result.storage_rows_read(), result.storage_bytes_read()
        answers = statement.returns_rows
        return Reply(
            body=result.bytes() or b"",
            format=(statement.format or request.default_format) if answers else "",
            summary={
                "read_rows": read_rows,
                "read_bytes": read_bytes,
                "written_rows": result.rows_written(),
                "written_bytes": result.bytes_written(),
                "total_rows_to_read": read_rows,
                "result_rows": result.rows_read() if answers else result.rows_written(),
                "result_bytes": result.bytes_read() if answers else result.bytes_written(),
                "elapsed_ns": time.perf_counter_ns() - started,
            },
        )

    def _insert(self, statement: Statement, data: bytes) -> Any:
        """Inserts through a file in memory.

        The binding's own streaming insert reports rows as written that the engine has refused (more partitions than
        allowed, for one), and data behind the SQL of a query ends at its first blank line.
        """
        handle = os.memfd_create("insert", os.MFD_CLOEXEC)
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(data)
            before, after = statement.sql[: statement.infile_at], statement.sql[statement.infile_at :]
            infile = f" FROM INFILE '/proc/self/fd/{handle}' ".encode()
            return self._query(before + infile + after + f" FORMAT {statement.format}".encode())
        finally:
            os.close(handle)

    def _reset(self, names: Iterable[str]) -> None:
        """Back to the defaults; a connection that refuses even that (`readonly`) is replaced."""
        try:
            for name in list(names):
                self._query(f"SET {name} = DEFAULT")
                del self._settings[name]
        except EngineError:
            self.close()
            self._open()

    def _query(self, sql: str | bytes, output_format: str = "TabSeparated", parameters: Any = None) -> Any:
        try:
            # Bytes are taken too, whatever the annotation says: data of an insert need not be text.
            return self._raw.query(cast("str", sql), output_format, params=parameters or {})
        except Exception as error:
            raise from_engine(error) from error


@dataclass(slots=True)
class _Session:
    connection: _Connection
    busy: bool = False
    expires: float = 0.0  # on the monotonic clock


def _escaped(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
