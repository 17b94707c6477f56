"""The event reader: the bytes of a body or of a file's line become checked events, or reasons why not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from clickhouse.event import Event, EventRejectedError, FieldError, parse_event
from query_api.http.errors import invalid, too_large
from query_api.ingest.cloud_events import parse_cloud_event
from query_api.ingest.json_text import (
    VALUES_AN_EVENT,
    AmbiguousObject,
    JsonError,
    TooManyValuesError,
    find_flaw,
    parse_json,
)

MAX_LINE_BYTES: Final = 1_000_000
# Beyond these, rejected events are counted but no longer explained: an answer must not cost more than its request.
MAX_REASONS: Final = 1_000


class Batch(NamedTuple):
    """The valid events, in order; why the others were refused; and how many that were, by the code of the first reason.

    A rejection has the members of the contract: index (from 0; an event with several faults has several), pointer,
    code and message. There are `MAX_REASONS` of them at most; `refused` counts all.
    """

    events: list[Event]
    rejected: list[dict[str, Any]]
    refused: dict[str, int]

    @property
    def rejected_events(self) -> int:
        """How many events were refused."""
        return sum(self.refused.values())


class BatchFormat(NamedTuple):
    """How a media type is read: `split` gives the entries of a body, `parse` makes an event of one.

    `split` also takes the number of values (see `parse_json`) that a document may have.
    """

    split: Callable[[bytes, int], Iterable[Any]]
    parse: Callable[[Any, int], Event]


def decode_batch(
    body: bytes, batch_format: BatchFormat, now_ms: int, max_events: int, may_send: Callable[[str], bool]
) -> Batch:
    """Reads `body`. `now_ms` (milliseconds since the epoch) bounds the future, `may_send` the tenants.

    Raises ApiError: 400 if the body as a whole cannot be read, 413 for more than `max_events` entries, or far
    more values than they could have.
    """
    batch = Batch([], [], {})
    for index, entry in enumerate(batch_format.split(body, max_events * VALUES_AN_EVENT)):
        if index >= max_events:
            raise too_large(f"A request may have at most {max_events} events; send smaller batches.")
        try:
            event = batch_format.parse(entry, now_ms)
            if not may_send(event.tenant_id):
                raise _refused("forbidden_tenant", "this source may not send events of this tenant", "/tenant_id")
        except EventRejectedError as error:
            room = MAX_REASONS - len(batch.rejected)
            if room > 0:
                batch.rejected.extend({"index": index, **reason._asdict()} for reason in error.errors[:room])
            code = error.errors[0].code
            batch.refused[code] = batch.refused.get(code, 0) + 1
        else:
            batch.events.append(event)
    return batch


def read_line(line: bytes, now_ms: int) -> Event:
    """One NDJSON line as an event, whether it came over HTTP or in a file. Raises EventRejectedError."""
    if len(line) > MAX_LINE_BYTES:
        raise _refused("length", f"a line is at most {MAX_LINE_BYTES} bytes long")
    try:
        value = parse_json(line)
    except JsonError as error:
        raise _refused("json", f"the line is {error.message}") from None
    return _read_value(value, now_ms)


def _read_value(value: object, now_ms: int) -> Event:
    _require_no_flaw(value)
    return parse_event(value, now_ms)


def _read_cloud_event(value: object, now_ms: int) -> Event:
    _require_no_flaw(value)
    return parse_cloud_event(value, now_ms)


def _require_no_flaw(value: object) -> None:
    flaw = find_flaw(value)
    if flaw is not None:
        raise _refused(flaw.code, flaw.message)


def _refused(code: str, message: str, pointer: str = "") -> EventRejectedError:
    return EventRejectedError([FieldError(pointer, code, message)])


def _json_entries(body: bytes, max_values: int) -> list[Any]:
    value = _document(body, max_values)
    if isinstance(value, list):
        return value
    # With an event_id it is an event, and `events` one of the unknown fields that are ignored.
    if isinstance(value, dict) and "events" in value and "event_id" not in value:
        if isinstance(value, AmbiguousObject):
            raise invalid("The body's object names a member twice.", pointer="")
        if not isinstance(value["events"], list):
            raise invalid("events must be an array of events.", pointer="/events")
        return value["events"]
    return [value]


def _lines(body: bytes, _max_values: int) -> Iterator[bytes]:
    """One entry a line that is not blank; a broken line is an entry of its own, so its neighbours are kept."""
    return (line for line in io.BytesIO(body) if not line.isspace())


def _cloud_event_entry(body: bytes, max_values: int) -> list[Any]:
    value = _document(body, max_values)
    if not isinstance(value, dict):
        raise invalid("application/cloudevents+json is one CloudEvent, a JSON object.", pointer="")
    return [value]


def _cloud_event_entries(body: bytes, max_values: int) -> list[Any]:
    value = _document(body, max_values)
    if not isinstance(value, list):
        raise invalid("application/cloudevents-batch+json is a JSON array of CloudEvents.", pointer="")
    return value


def _document(body: bytes, max_values: int) -> Any:
    try:
        return parse_json(body, max_values)
    except TooManyValuesError as error:
        raise too_large(f"The body is {error.message}; send smaller batches.") from None
    except JsonError as error:
        where = {} if error.position is None else {"position": error.position}
        raise invalid(f"The body is {error.message}.", **where) from None


# By media type, lower case, without parameters.
FORMATS: Final[dict[str, BatchFormat]] = {
    "application/json": BatchFormat(_json_entries, _read_value),
    "application/x-ndjson": BatchFormat(_lines, read_line),
    "application/cloudevents+json": BatchFormat(_cloud_event_entry, _read_cloud_event),
    "application/cloudevents-batch+json": BatchFormat(_cloud_event_entries, _read_cloud_event),
}
