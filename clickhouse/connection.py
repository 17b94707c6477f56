"""The connection: one code path to embedded chDB and to a ClickHouse server, a client per thread."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httpclient import HttpClient

from clickhouse.directory import Foothold, prepare
from clickhouse.dsn import database_of, embedded_path, redact, redact_text, server_arguments
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.statement_settings import NEUTRAL, QUORUM, SETTINGS

INSERT_SECONDS: Final = 20  # an insert without an answer by then has failed, and the server has given it up
UNKNOWN_DATABASE: Final = 81
UNKNOWN_SETTING: Final = 115
# What no profile may change; `filter` cannot be undone from outside, and later versions may have more of its kind.
_CANARY: Final = "SELECT number FROM numbers(3) GROUP BY number ORDER BY number"
_NAMED_SETTING: Final = re.compile(r"[Ss]etting '?(\w+)")
_SENT_SETTINGS: Final = re.compile(r"/\?[^\s)]*")  # in a message, the reason would be cut off behind them
# Read-only, a setting that the profile pins, a grant that is missing.
_NOT_PERMITTED: Final = frozenset({164, 452, 497})
_WRONG_CREDENTIALS: Final = frozenset({192, 193, 194, 516})


class Connection:
    """Runs statements on the store that a DSN names. Thread-safe: each thread gets a client of its own.

    A client is not safe for two statements at once, and on chDB a session per thread is also the fastest
    arrangement. Raises StoreInUseError, StoreSetupError or StoreUnavailableError when it cannot be opened.
    """

    def __init__(
        self, dsn: str, *, replicas: int = 1, insert_timeout: int = INSERT_SECONDS, create: bool = True
    ) -> None:
        """`replicas`: how many the server's tables have; with several, an insert is answered by two of them."""
        self.dsn = dsn
        self.embedded = dsn.startswith("chdb:")
        self.insert_timeout = insert_timeout  # seconds an insert may take before its outcome counts as unknown
        self._local = threading.local()
        self._clients: list[Client] = []
        self._lock = threading.Lock()
        self._closed = False
        self._table_types: dict[str, dict[str, str]] = {}
        self._changes = 0
        self._settings = {**SETTINGS, **(QUORUM if replicas > 1 else {}), **({} if self.embedded else NEUTRAL)}
        self._foothold: Foothold | None = None
        if self.embedded:
            prepare(embedded_path(dsn), create=create)
            self._arguments: dict[str, Any] = {"dsn": dsn}
        else:
            self._arguments = self._server_arguments(dsn)
        self._open(create=create)

    def _server_arguments(self, dsn: str) -> dict[str, Any]:
        return server_arguments(dsn) | {
            "autogenerate_session_id": False,
            "connect_timeout": 5,
            "send_receive_timeout": self.insert_timeout + 5,
            "query_retries": 0,
            "form_encode_query_params": True,  # lists of slots would outgrow a URL
        }

    def move(self, dsn: str) -> None:
        """From now on statements go to another server with the same tables; those under way end where they are."""
        arguments = self._server_arguments(dsn)
        with self._lock:
            self.dsn, self._arguments, self._clients = dsn, arguments, []

    @property
    def path(self) -> Path | None:
        """The directory of an embedded store, None for a server."""
        return embedded_path(self.dsn) if self.embedded else None

    @property
    def counters_file(self) -> Path | None:
        """Where the counters file of an embedded store lies: next to it, so that restoring the store leaves it."""
        return self.path.with_name(self.path.name + ".counters.json") if self.path else None

    @property
    def address(self) -> str:
        """The DSN without its user and password, fit for logs and errors."""
        return redact(self.dsn)

    @property
    def changes(self) -> int | None:
        """How many statements have changed an embedded store so far; None for a server, where others write as well.

        While it stays the same, so does every answer. To be read before the answer that it is to stand for.
        """
        return self._changes if self.embedded else None

    def hold(self) -> None:
        """From now on every call raises StoreUnavailableError once the directory was removed, replaced or emptied.

        To be called when all tables are there. Raises StoreError.
        """
        if self.path is None:
            return
        rows = self.rows("SELECT arrayJoin(data_paths) FROM system.tables WHERE database = currentDatabase()")
        tables = [Path(folder) / "format_version.txt" for (folder,) in rows]
        with self._errors():
            self._foothold = Foothold(self.path, [self.path / "status", self.path / "metadata" / "default", *tables])

    def command(self, sql: str, parameters: Mapping[str, Any] | None = None, **settings: str | int) -> None:
        """Runs a statement that returns nothing. Raises StoreError."""
        with self._changing(), self._errors():
            self._client().command(sql, parameters=dict(parameters or {}), settings=dict(settings))

    def columns(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[list[Any]]:
        """Runs a SELECT and returns its columns; an empty list when there are no rows. Raises StoreError."""
        with self._errors():
            result = self._client().query(sql, parameters=dict(parameters or {}), settings=dict(settings or {}))
            return [list(column) for column in result.result_columns]

    def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Runs a SELECT and returns its rows. Raises StoreError."""
        return list(zip(*self.columns(sql, parameters, settings), strict=True))

    def fresh_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a SELECT over a connection of its own and returns its rows. Raises StoreError."""
        with self._errors():
            client = self._connected(dedicated_pool=True)
            try:
                return [tuple(row) for row in client.query(sql).result_rows]
            finally:
                client.close()

    def send_settings(self, settings: Mapping[str, str | int]) -> None:
        """Sends these along with every statement of a server from now on. To be called before other threads use it."""
        self._settings.update(settings)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            cast(HttpClient, client).params.update({name: str(value) for name, value in settings.items()})

    def text(self, sql: str, parameters: Mapping[str, Any] | None = None, **settings: str | int) -> bytes:
        """Runs a SELECT that names its FORMAT and returns what the engine wrote. Raises StoreError."""
        with self._errors():
            return self._client().raw_query(sql, parameters=dict(parameters or {}), settings=dict(settings))

    def insert(self, table: str, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
        """Inserts equal-length `columns` and returns once they are durable.

        Raises StoreUnavailableError: the rows may or may not be stored, and inserting them again is safe.
        """
        if not columns or not columns[0]:
            return
        with self._changing(), self._errors(writing=True):
            self._client().insert(
                table,
                columns,
                column_names=list(names),
                column_type_names=self._types(table, names),
                column_oriented=True,
                settings={"max_execution_time": self.insert_timeout},
            )
        if self._foothold:
            self._foothold.check()  # or the rows are in a directory that nobody will open again

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        finally:  # one that failed may have done half of its work
            with self._lock:
                self._changes += 1

    def _types(self, table: str, names: Sequence[str]) -> list[str]:
        """Column types, asked once a table: the driver would ask before every insert, a third of a small one's time."""
        if table not in self._table_types:
            described = self._client().query(f"DESCRIBE TABLE {quote_name(table)}").result_rows
            self._table_types[table] = {str(row[0]): str(row[1]) for row in described}
        return [self._table_types[table][name] for name in names]

    def close(self) -> None:
        """Closes every client; later calls fail."""
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, []
        for client in clients:
            with contextlib.suppress(Exception):
                client.close()
        if self._foothold:
            self._foothold.close()

    def _open(self, *, create: bool) -> None:
        """Connects once, so that a wrong DSN is known now and not at the first event; makes a missing database."""
        try:
            self._client()
            if not self.embedded and self.rows(_CANARY) != [(0,), (1,), (2,)]:
                raise StoreSetupError(
                    f"--dsn {self.address}: the user's settings profile changes what statements answer; give a user "
                    "with a plain one"
                )
        except StoreUnavailableError as error:
            if self._forget_unknown(error):
                self._open(create=create)
                return
            database = "" if self.embedded else database_of(self.dsn)
            if not database or _code(error.__cause__) != UNKNOWN_DATABASE:
                raise StoreSetupError(f"--dsn {self.address}: {error}") from error
            if not create:
                raise StoreSetupError(
                    f"--dsn {self.address}: there is no such database; run agentidp-analytics migrate, or name another"
                ) from error
            self._make_database(database)
            self._open(create=False)

    def _forget_unknown(self, error: StoreUnavailableError) -> bool:
        """Whether a neutral setting was refused as unknown; it is not sent again."""
        named = _NAMED_SETTING.search(str(error.__cause__))
        if _code(error.__cause__) != UNKNOWN_SETTING or named is None or named[1] not in NEUTRAL:
            return False
        return self._settings.pop(named[1], None) is not None

    def _connected(self, **more: Any) -> Client:
        if self.embedded:
            try:
                return clickhouse_connect.get_client(**self._arguments, settings=self._settings, **more)
            except ImportError as error:
                raise StoreSetupError(
                    f"--dsn {self.address} needs the embedded engine, which is not installed; install "
                    "agentidp-analytics[embedded], or give a ClickHouse server as --dsn"
                ) from error
        sent = {name: str(value) for name, value in self._settings.items()}
        # Not as the driver's `settings`: it asks its own first questions without them, and a profile that cuts those
        # leaves it wrong about the server. Of the whole class, so it is taken back for who else uses the driver; a
        # thread that loses that race has asked those questions without, and gets them for its own.
        HttpClient.params = sent
        try:
            client = clickhouse_connect.get_client(**self._arguments, **more)
        finally:
            HttpClient.params = {}
        cast(HttpClient, client).params.update(sent)
        return client

    def _make_database(self, name: str) -> None:
        with self._errors(opening=True):
            bootstrap = self._connected(database="default")
            bootstrap.command(f"CREATE DATABASE IF NOT EXISTS {quote_name(name)}")
            bootstrap.close()

    def _client(self) -> Client:
        if self._foothold:
            self._foothold.check()
        client: Client | None = getattr(self._local, "client", None)
        if client is None or self._closed or self._local.arguments is not self._arguments:
            if self._closed:
                raise StoreUnavailableError("the store is closed")
            arguments = self._arguments
            with self._errors(opening=True):
                client = self._connected()
            self._local.client, self._local.arguments = client, arguments
            with self._lock:
                self._clients.append(client)
        return client

    @contextlib.contextmanager
    def _errors(self, *, writing: bool = False, opening: bool = False) -> Iterator[None]:
        """Turns every driver, engine and socket error into a StoreError; credentials never get into its text."""
        try:
            yield
        except StoreError:
            raise
        except ClickHouseError as error:
            raise self._translated(error, writing=writing, opening=opening) from error
        except Exception as error:
            # What answers at first contact may be anything, and the driver then fails in any way.
            if not opening and not isinstance(error, (OSError, ValueError)):
                raise
            # An embedded store has no secret that could stand in it.
            what = redact_text(str(error), self.dsn)[:300] if self.embedded else ""
            raise StoreUnavailableError(f"the store at {self.address} failed: {type(error).__name__} {what}") from error

    def _translated(self, error: ClickHouseError, *, writing: bool, opening: bool) -> StoreError:
        text = _SENT_SETTINGS.sub("/?...", redact_text(str(error), self.dsn))
        if self.embedded and opening:
            return StoreUnavailableError(f"the embedded store cannot be opened: {text[:300]}")
        if _code(error) in _WRONG_CREDENTIALS:
            return StoreSetupError(f"--dsn {self.address}: the server refused the user or password")
        if _code(error) in _NOT_PERMITTED:
            return StoreSetupError(f"--dsn {self.address}: the user may not do what is needed: {text[:300]}")
        if writing or opening or _code(error) is None or _code(error) in _TRANSIENT:
            return StoreUnavailableError(f"the store at {self.address} failed: {text[:300]}")
        return StoreError(f"the store at {self.address} refused a statement: {text[:500]}")


# Engine errors that pass by themselves: time-outs, memory, too many queries or parts, full or read-only disk,
# network and Store trouble, missing or lagging replicas.
_TRANSIENT: Final = frozenset(
    {74, 75, 76, 159, 202, 203, 209, 210, 225, 236, 241, 242, 243, 252, 279, 285, 286, 289, 319, 341, 439, 999}
)


def _code(error: BaseException | None) -> int | None:
    """The engine's error code; None when the error did not come from the engine."""
    return getattr(error, "code", None)


def quote_name(name: str | None) -> str:
    """An identifier, safe to put between SQL words."""
    return "`" + (name or "").replace("\\", "\\\\").replace("`", "\\`") + "`"
