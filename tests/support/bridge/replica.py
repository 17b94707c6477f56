"""One replica of a shard: what it writes reaches the others through a log in a shared directory, as through Keeper.

Data go along, as a server's parts do, and not the statement that made them: what an INSERT ... SELECT reads differs
from replica to replica. A log entry is committed by its final name; whoever finds it applies it, in order.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.support.bridge.engine import Engine, Reply, Request
from tests.support.bridge.errors import (
    REPLICA_IS_NOT_IN_QUORUM,
    TIMEOUT,
    TOO_FEW_LIVE_REPLICAS,
    UNKNOWN_STATUS_OF_INSERT,
    UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE,
    EngineError,
    refusal,
)
from tests.support.bridge.statement import Statement

_FROM_SELECT: Final = re.compile(rb"\s*INSERT INTO (\w+) \(([^)]*)\)\s*(SELECT\b.*)", re.DOTALL)
_SYNC: Final = re.compile(rb"\s*SYSTEM SYNC REPLICA (\w+)")
_ENGINE: Final = re.compile(rb"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, (\w+))?\)")
_TABLES: Final = b"SELECT name, engine FROM system.tables"
_HEARTBEAT_SECONDS: Final = 0.2
_DEAD_AFTER_SECONDS: Final = 3.0
_SYNC_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01


class Replica:
    """Takes the place of the engine in a server. `shared` belongs to the shard, `name` is this replica's host.

    `cluster` has (shard number, replica number, host) of every server.
    """

    def __init__(self, engine: Engine, shared: Path, name: str, cluster: list[tuple[int, int, str]]) -> None:
        self.engine = engine
        self.version, self.timezone = engine.version, engine.timezone
        self._name = name
        self._log = shared / "log"
        self._acks = shared / "acks"
        self._alive = shared / "alive"
        for directory in (self._log, self._acks, self._alive):
            directory.mkdir(parents=True, exist_ok=True)
        rows = ", ".join(f"('main', {shard}, {number}, '{host}')" for shard, number, host in cluster)
        columns = "cluster String, shard_num UInt32, replica_num UInt32, host_name String"
        engine.pretended = {
            "system.clusters": f"(SELECT * FROM values('{columns}', {rows}))",
            "hostName()": f"'{name}'",
        }
        self._applied_file = shared / f"applied-{name}"
        self._applied = set(self._applied_file.read_text().split()) if self._applied_file.exists() else set[str]()
        self._fetches = threading.Event()
        self._fetches.set()
        self._lag = 0.0
        self._applying = threading.Lock()
        self._unconfirmed: set[str | None] = set()  # tables with an insert that waits for its sequential quorum
        self._stopped = threading.Event()
        for unfinished in self._log.glob(f"*-{name}.tmp"):
            unfinished.rename(unfinished.with_suffix(".op"))  # it was executed here, or will be below
        self._apply_all()
        self._threads = [threading.Thread(target=self._fetch), threading.Thread(target=self._beat)]
        for thread in self._threads:
            thread.start()

    def control(self, *, fetches: bool, lag: float) -> None:
        """Whether entries of the others are applied, and how many seconds after they were written."""
        self._lag = lag
        if fetches:
            self._fetches.set()
        else:
            self._fetches.clear()

    def execute(self, request: Request) -> Reply:
        """Runs a request; one that changes data is in the log when it is answered."""
        statement = request.statement
        sync = _SYNC.match(statement.sql)
        if sync:
            return self._sync()
        sql = _ENGINE.sub(lambda match: match[1] + b"(" + (match[2] or b"") + b")", statement.sql)
        sql = sql.replace(_TABLES, _TABLES.replace(b"engine", b"concat('Replicated', engine) AS engine"))
        request = replace(request, statement=replace(statement, sql=sql))
        from_select = _FROM_SELECT.match(sql) if statement.verb == "INSERT" and statement.data is None else None
        if from_select:
            request = self._with_data(request, from_select)
        if request.statement.verb == "INSERT":
            quorum = int(request.settings.get("insert_quorum", "0") or 0)
            if quorum > 1 and request.settings.get("insert_quorum_parallel", "1") == "0":
                return self._commit_alone(request, quorum)
            return self._commit(request, quorum)
        if request.settings.get("select_sequential_consistency", "0") == "1" and self._missing():
            raise refusal(
                REPLICA_IS_NOT_IN_QUORUM, "Replica doesn't have part which was successfully written to quorum"
            )
        if request.statement.verb == "ALTER" and b"MODIFY" not in sql:
            return self._commit(request, 0)
        return self.engine.execute(request)

    def close(self) -> None:
        """Ends the threads, then the engine."""
        self._stopped.set()
        self._fetches.set()
        for thread in self._threads:
            thread.join()
        self.engine.close()

    def _with_data(self, request: Request, parts: re.Match[bytes]) -> Request:
        # By position, as INSERT ... SELECT has it, and whatever the widths of its numbers are.
        select = replace(request, statement=Statement(parts[3], "SELECT"), default_format="TabSeparated")
        data = self.engine.execute(select).body
        sql = b"INSERT INTO " + parts[1] + b" (" + parts[2] + b")"
        insert = Statement(sql, "INSERT", table=parts[1].decode(), format="TabSeparated", data=data, infile_at=len(sql))
        return replace(request, statement=insert, parameters={})

    def _commit(self, request: Request, quorum: int) -> Reply:
        alive = [path for path in self._alive.iterdir() if time.time() - path.stat().st_mtime < _DEAD_AFTER_SECONDS]
        if len(alive) < quorum:
            raise refusal(TOO_FEW_LIVE_REPLICAS, f"Number of alive replicas ({len(alive)}) is less than the quorum.")
        if request.statement.data == b"":
            return self.engine.execute(replace(request, statement=Statement(b"SELECT 1 WHERE 0", "SELECT")))
        entry = f"{time.time_ns():020d}-{self._name}"
        path = self._log / f"{entry}.tmp"
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(_packed(request))
        unfinished.rename(path)  # whole, or not at all: what a kill cuts off would stop everybody
        with self._applying:
            try:
                reply = self.engine.execute(request)
            except EngineError:
                path.unlink()
                raise
            self._note(entry)
        path.rename(path.with_suffix(".op"))
        if quorum > 1:
            self._await_quorum(entry, quorum, float(request.settings.get("insert_quorum_timeout", "600000")) / 1000)
        return reply

    def _commit_alone(self, request: Request, quorum: int) -> Reply:
        """A sequential quorum: what is inserted into the table beside is refused, and does not wait."""
        table = request.statement.table
        with self._applying:
            if table in self._unconfirmed:
                message = "Quorum for previous write has not been satisfied yet."
                raise refusal(UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE, message)
            self._unconfirmed.add(table)
        try:
            return self._commit(request, quorum)
        finally:
            with self._applying:
                self._unconfirmed.discard(table)

    def _await_quorum(self, entry: str, quorum: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(list(self._acks.glob(f"{entry}@*"))) + 1 < quorum:
            if time.monotonic() > deadline:
                raise refusal(UNKNOWN_STATUS_OF_INSERT, "Timeout while waiting for quorum.")
            time.sleep(_POLL_SECONDS)

    def _sync(self) -> Reply:
        deadline = time.monotonic() + _SYNC_SECONDS
        wanted = {path.stem for path in self._missing()}  # not what is written meanwhile, or it might never end
        while wanted - self._applied:
            if time.monotonic() > deadline:
                raise refusal(TIMEOUT, "SYNC REPLICA: command timed out.")
            time.sleep(_POLL_SECONDS)
        return Reply(b"", "", {})

    def _missing(self) -> list[Path]:
        return sorted(path for path in self._log.glob("*.op") if path.stem not in self._applied)

    def _fetch(self) -> None:
        while not self._stopped.is_set():
            self._fetches.wait()
            try:
                self._apply_all(self._lag)
            except Exception:
                traceback.print_exc()
                time.sleep(1)
            time.sleep(_POLL_SECONDS)

    def _apply_all(self, lag: float = 0.0) -> None:
        for path in self._missing():
            if not self._fetches.is_set() or self._stopped.is_set():
                return
            wait = path.stat().st_mtime + lag - time.time()
            if wait > 0 and self._stopped.wait(wait):
                return
            with self._applying:
                self.engine.execute(_unpacked(path.read_bytes()))
                self._note(path.stem)
            (self._acks / f"{path.stem}@{self._name}").touch()

    def _note(self, entry: str) -> None:
        self._applied.add(entry)
        with self._applied_file.open("a") as file:
            file.write(entry + "\n")

    def _beat(self) -> None:
        while not self._stopped.wait(_HEARTBEAT_SECONDS):
            (self._alive / self._name).touch()
        (self._alive / self._name).unlink(missing_ok=True)


def _packed(request: Request) -> bytes:
    statement = request.statement
    data = None if statement.data is None else base64.b64encode(statement.data).decode()
    return json.dumps({
        "sql": statement.sql.decode(), "verb": statement.verb, "table": statement.table, "format": statement.format,
        "data": data, "infile_at": statement.infile_at, "database": request.database,
        "parameters": dict(request.parameters),
        "settings": {name: value for name, value in request.settings.items() if not name.startswith("insert_quorum")},
    }).encode()  # fmt: skip


def _unpacked(packed: bytes) -> Request:
    entry: dict[str, Any] = json.loads(packed)
    data = None if entry["data"] is None else base64.b64decode(entry["data"])
    statement = Statement(
        entry["sql"].encode(), entry["verb"], entry["table"], entry["format"], data, entry["infile_at"]
    )
    settings: Mapping[str, str] = entry["settings"]
    return Request(statement, database=entry["database"], settings=settings, parameters=entry["parameters"])
