"""The CloudEvents envelope (CloudEvents 1.0, JSON event format): its `data` is the event."""

from __future__ import annotations

from typing import Any

from clickhouse.event import Event, EventRejectedError, FieldError, parse_event


def parse_cloud_event(value: object, now_ms: int) -> Event:
    """Checks the required attributes (CloudEvents 1.0 section 3.1) and the event in `data`.

    Raises EventRejectedError with every error at once, those of the event under /data.
    """
    if not isinstance(value, dict):
        raise EventRejectedError([FieldError("", "type", "a CloudEvent is a JSON object")])
    errors = _attribute_errors(value)
    event = None
    if "data_base64" in value:
        errors.append(FieldError("/data_base64", "format", "send the event as JSON in data, not as data_base64"))
    elif value.get("data") is None:
        errors.append(FieldError("/data", "required", "data is required: it is the event"))
    else:
        try:
            event = parse_event(value["data"], now_ms)
        except EventRejectedError as error:
            errors += [reason._replace(pointer=f"/data{reason.pointer}") for reason in error.errors]
    if errors or event is None:
        raise EventRejectedError(errors)
    return event


def _attribute_errors(envelope: dict[str, Any]) -> list[FieldError]:
    errors: list[FieldError] = []
    for name in ("specversion", "id", "source", "type"):
        value = envelope.get(name)
        if value is None:
            errors.append(FieldError(f"/{name}", "required", f"{name} is required"))
        elif not isinstance(value, str):
            errors.append(FieldError(f"/{name}", "type", f"{name} must be a string"))
        elif not value:
            errors.append(FieldError(f"/{name}", "length", f"{name} must not be empty"))
        elif name == "specversion" and value != "1.0":
            errors.append(FieldError("/specversion", "enum", "specversion must be 1.0"))
    return errors
