"""JSON as RFC 8259 has it, with its ambiguities found instead of resolved silently."""

from __future__ import annotations

import json
from typing import Any, Final

MAX_DEPTH: Final = 32
# The parser holds the interpreter from a text's first byte to its last, and a megabyte of `[],` is a third of a million
# objects to make: what it may cost is bounded before it starts. Of one line, and of an event's share in a document:
MAX_VALUES_A_LINE: Final = 10_000
VALUES_AN_EVENT: Final = 20
_VALUES_A_CONTAINER: Final = 5
# Python itself refuses to read integers from 4,300 digits on; no field of an event needs more than 16.
_MAX_DIGITS: Final = 1_000
_BOM: Final = b"\xef\xbb\xbf"


class Flaw:
    """Stands where a value is no JSON, so that only the event it is in gets refused. `code` is json or depth."""

    __slots__ = ("code", "message")

    def __init__(self, message: str, code: str = "json") -> None:
        self.code = code
        self.message = message


class AmbiguousObject(dict[str, Any]):
    """An object that names a member twice (RFC 8259 section 4: what a reader makes of it is unpredictable)."""


_CONSTANT: Final = Flaw("NaN and Infinity are not JSON")
_LONG_NUMBER: Final = Flaw(f"a number has more than {_MAX_DIGITS} digits")
_TWICE: Final = Flaw("an object names a member twice")
_TOO_DEEP: Final = Flaw(f"nested deeper than {MAX_DEPTH} levels", "depth")
_NOTEWORTHY: Final = frozenset({dict, list, AmbiguousObject, Flaw})


class JsonError(ValueError):
    """Text that is no JSON. `position` is the offset in characters, None if it cannot be told."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


class TooManyValuesError(JsonError):
    """Text with so many values that parsing it would hold everybody up."""


def parse_json(text: bytes, max_values: int = MAX_VALUES_A_LINE) -> Any:
    """The value of a JSON text in UTF-8 (a byte order mark is skipped). Raises JsonError.

    A text with more than `max_values` commas, or a fifth of that many brackets and braces, is not parsed; those inside
    strings count too. What is wrong inside a value comes back as Flaw and AmbiguousObject: `find_flaw` finds them.
    """
    max_containers = max_values // _VALUES_A_CONTAINER
    if text.count(b",") > max_values or text.count(b"[") + text.count(b"{") > max_containers:
        raise TooManyValuesError(f"made of more than {max_values:,} values, or {max_containers:,} objects and arrays")
    try:
        return _DECODER.decode(text.removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise JsonError("not valid UTF-8", error.start) from None
    except json.JSONDecodeError as error:
        raise JsonError("not valid JSON", error.pos) from None
    except RecursionError:
        raise JsonError(_TOO_DEEP.message) from None


def find_flaw(value: object) -> Flaw | None:
    """The first flaw in `value`, however deep; more than MAX_DEPTH levels of nesting are a flaw too."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            kind = node.__class__
            if kind is Flaw:
                return node  # type: ignore[no-any-return]
            if kind is AmbiguousObject:
                return _TWICE
            if kind is dict:
                below += [child for child in node.values() if child.__class__ in _NOTEWORTHY]
            elif kind is list:
                below += [child for child in node if child.__class__ in _NOTEWORTHY]
        if not below:
            return None
        level = below
    return _TOO_DEEP


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    return found if len(found) == len(members) else AmbiguousObject(found)


def _integer(digits: str) -> int | Flaw:
    return int(digits) if len(digits) <= _MAX_DIGITS else _LONG_NUMBER


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_constant=lambda _constant: _CONSTANT
)
