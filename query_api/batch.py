"""From the bytes of a body to checked events: the formats that are understood, and what was wrong with the rest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from clickhouse.event import Event, EventRejectedError, FieldError, parse_event
from query_api.cloud_events import parse_cloud_event
from query_api.errors import invalid, too_large
from query_api.json_text import AmbiguousObject, JsonError, find_flaw, parse_json


class Batch(NamedTuple):
    """The valid events, in order; why the others were refused; and how many that were, by the code of the first reason.

    A rejection has the members of the contract: index (from 0; an event with several faults has several), pointer,
    code and message.
    """

    events: list[Event]
    rejected: list[dict[str, Any]]
    refused: dict[str, int]


class BatchFormat(NamedTuple):
    """How a media type is read: `split` gives the entries of a body, `parse` makes an event of one."""

    split: Callable[[bytes], Iterable[object]]
    parse: Callable[[object, int], Event]


def decode_batch(
    body: bytes, batch_format: BatchFormat, now_ms: int, max_events: int, may_send: Callable[[str], bool]
) -> Batch:
    """Reads `body`. `now_ms` (milliseconds since the epoch) bounds the future, `may_send` the tenants.

    Raises ApiError: 400 if the body as a whole cannot be read, 413 for more than `max_events` entries.
    """
    batch = Batch([], [], {})
    for index, entry in enumerate(batch_format.split(body)):
        if index >= max_events:
            raise too_large(f"A request may have at most {max_events} events; send smaller batches.")
        try:
            event = _event(entry, batch_format, now_ms, may_send)
        except EventRejectedError as error:
            batch.rejected.extend({"index": index, **reason._asdict()} for reason in error.errors)
            code = error.errors[0].code
            batch.refused[code] = batch.refused.get(code, 0) + 1
        else:
            batch.events.append(event)
    return batch


def _event(entry: object, batch_format: BatchFormat, now_ms: int, may_send: Callable[[str], bool]) -> Event:
    if isinstance(entry, EventRejectedError):
        raise entry
    flaw = find_flaw(entry)
    if flaw is not None:
        raise _refused(flaw.code, flaw.message)
    event = batch_format.parse(entry, now_ms)
    if not may_send(event.tenant_id):
        raise EventRejectedError(
            [FieldError("/tenant_id", "forbidden_tenant", "this source may not send events of this tenant")]
        )
    return event


def _refused(code: str, message: str) -> EventRejectedError:
    return EventRejectedError([FieldError("", code, message)])


def _json_entries(body: bytes) -> list[Any]:
    value = _document(body)
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


def _lines(body: bytes) -> Iterator[object]:
    """One entry a line that is not blank; a broken line is an entry of its own, so its neighbours are kept."""
    for line in io.BytesIO(body):
        if line.isspace():
            continue
        try:
            yield parse_json(line)
        except JsonError as error:
            yield _refused("json", f"the line is {error.message}")


def _cloud_event_entry(body: bytes) -> list[Any]:
    value = _document(body)
    if not isinstance(value, dict):
        raise invalid("application/cloudevents+json is one CloudEvent, a JSON object.", pointer="")
    return [value]


def _cloud_event_entries(body: bytes) -> list[Any]:
    value = _document(body)
    if not isinstance(value, list):
        raise invalid("application/cloudevents-batch+json is a JSON array of CloudEvents.", pointer="")
    return value


def _document(body: bytes) -> Any:
    try:
        return parse_json(body)
    except JsonError as error:
        where = {} if error.position is None else {"position": error.position}
        raise invalid(f"The body is {error.message}.", **where) from None


# By media type, lower case, without parameters.
FORMATS: Final[dict[str, BatchFormat]] = {
    "application/json": BatchFormat(_json_entries, parse_event),
    "application/x-ndjson": BatchFormat(_lines, parse_event),
    "application/cloudevents+json": BatchFormat(_cloud_event_entry, parse_cloud_event),
    "application/cloudevents-batch+json": BatchFormat(_cloud_event_entries, parse_cloud_event),
}
