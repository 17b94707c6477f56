"""The backfill: NDJSON files and streams into the writer, in bounded memory, resumable by running it again."""

from __future__ import annotations

import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NamedTuple

from isal import igzip, isal_zlib

from clickhouse.event import Event, EventRejectedError, FieldError
from query_api.ingest.formats import MAX_LINE_BYTES, read_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EVENTS_A_BATCH: Final = 50_000
WRITERS: Final = 2
_READ_BYTES: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


class Reject(NamedTuple):
    """A line that was not taken: where it stands (line numbers from 1), why, and its text."""

    file: str
    line: int
    errors: list[FieldError]
    text: str

    def as_json(self) -> str:
        """As one line of NDJSON."""
        return json.dumps(self._asdict() | {"errors": [error._asdict() for error in self.errors]})


@dataclass(slots=True)
class Tally:
    """What a backfill did so far, in bytes of the files as they lie on disk (`total` 0: unknown).

    `done` is what is stored or rejected of what was `read`. `codes` counts each rejected line once, by its first fault.
    """

    accepted: int = 0
    rejected: int = 0
    read: int = 0
    done: int = 0
    total: int = 0
    codes: dict[str, int] = field(default_factory=dict)


class InputError(Exception):
    """A file that cannot be read to its end: missing, not permitted, or damaged compression."""


def backfill(
    paths: Sequence[str],
    write: Callable[[Sequence[Event]], None],
    *,
    now_ms: Callable[[], int],
    on_reject: Callable[[Reject], None] = lambda reject: None,
    on_progress: Callable[[Tally], None] = lambda tally: None,
    after_batch: Callable[[], None] = lambda: None,
) -> Tally:
    """Reads every file (`-`: standard input; `.gz` and `.zst` are unpacked) and writes the events in batches.

    `write` is called from two threads; its StoreError ends the backfill. Lines that are no event go to `on_reject`
    and change nothing. Raises InputError after the batches before it were written: run it again from the start,
    events count once.
    """
    tally = Tally(total=sum(Path(path).stat().st_size for path in paths if path != "-" and Path(path).is_file()))
    if "-" in paths:
        tally.total = 0
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="backfill") as threads:
        pending: list[tuple[Future[None], int, int]] = []

        def finish(limit: int) -> None:
            while len(pending) > limit:
                done, events, read = pending.pop(0)
                done.result()
                tally.accepted += events
                tally.done = read
                after_batch()
                on_progress(tally)

        batch: list[Event] = []
        try:
            for path in paths:
                for event in _events(path, tally, now_ms, on_reject):
                    batch.append(event)
                    if len(batch) >= EVENTS_A_BATCH:
                        pending.append((threads.submit(write, batch), len(batch), tally.read))
                        batch = []
                        finish(WRITERS)
        finally:
            if batch:
                pending.append((threads.submit(write, batch), len(batch), tally.read))
            finish(0)
    return tally


def _events(path: str, tally: Tally, now_ms: Callable[[], int], on_reject: Callable[[Reject], None]) -> Iterator[Event]:
    for number, line in enumerate(_lines(path, tally), start=1):
        if line.isspace():
            continue
        try:
            yield read_line(line, now_ms())
        except EventRejectedError as error:
            tally.rejected += 1
            first = error.errors[0].code
            tally.codes[first] = tally.codes.get(first, 0) + 1
            on_reject(Reject(path, number, error.errors, line.decode("utf-8", "surrogateescape").rstrip("\r\n")))


def _lines(path: str, tally: Tally) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            counted = _CountedReader(file, tally)
            stream = _unpacked(counted)
            while line := stream.readline(MAX_LINE_BYTES + 1):
                yield line
                while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES + 1)  # the rest of a line that is too long
    except (OSError, EOFError, zstd.ZstdError, zlib.error, isal_zlib.error) as error:  # type: ignore[misc]
        raise InputError(f"{path}: {error}") from error


def _open(path: str) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    return Path(path).open("rb")


def _unpacked(raw: io.RawIOBase) -> IO[bytes]:
    """What `raw` holds, gzip (RFC 1952) and Zstandard (RFC 8878) unpacked: its first bytes tell, not its name."""
    buffered = io.BufferedReader(raw, _READ_BYTES)
    start = buffered.peek(4)[:4]
    if start.startswith(_GZIP):
        unpacked: Any = igzip.IGzipFile(fileobj=buffered)  # type: ignore[no-untyped-call]
        return io.BufferedReader(unpacked, _READ_BYTES)
    if start == _ZSTD:
        return io.BufferedReader(zstd.ZstdFile(buffered), _READ_BYTES)
    return buffered


class _CountedReader(io.RawIOBase):
    """Counts the bytes that pass, so that progress is that of the file and not of what it unpacks to."""

    def __init__(self, file: BinaryIO, tally: Tally) -> None:
        self._file = file
        self._tally = tally

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._tally.read += len(data)
        return len(data)
