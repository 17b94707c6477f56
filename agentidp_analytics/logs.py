"""Log lines on stderr: one line each, as JSON or as text, with nothing in them that a caller wrote."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

# They say with addresses and statements what our own errors say without.
_CHATTY: Final = ("urllib3", "clickhouse_connect")

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logging(log_format: str | None, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Sends every logger's lines to `stream` (default stderr), replacing what was configured before.

    `log_format` is json or text; None: text on a terminal, else json.
    """
    stream = stream or sys.stderr
    log_format = log_format or ("text" if stream.isatty() else "json")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Formatter(logging.Formatter):
    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        """Types and places of an exception and of its causes, without their messages.

        A message can hold what a caller sent or a connection string with its password; type and place find the bug.
        """
        parts: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(parts) < _MAX_CAUSES:
            frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
            places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
            parts.append(f"{type(error).__module__}.{type(error).__qualname__} at {places or 'nowhere'}")
            error = error.__cause__ or error.__context__
        return "; because of ".join(parts)

    def message(self, record: logging.LogRecord) -> str:
        """The message. asyncio's first line is its own; then comes the text of what failed, which may say anything."""
        text = record.getMessage()
        return text.partition("\n")[0] if record.name == "asyncio" else text

    def values(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields of the line, with the exception (if any) as one of them."""
        found: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            found["exception"] = self.formatException(record.exc_info)
        return found


_MAX_CAUSES: Final = 5
_MAX_FRAMES: Final = 12


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, then the line's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`."""
        line: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
        }
        for name, value in self.values(record).items():
            line.setdefault(name, value)
        return json.dumps(line, default=str)


class TextFormatter(_Formatter):
    """Time, level, message, then the fields as name=value; control characters escaped, so that a line is a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`."""
        parts = [_moment(record.created), f"{record.levelname:<7}", self.message(record)]
        parts += [f"{name}={value}" for name, value in self.values(record).items()]
        text = " ".join(parts)
        return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _moment(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
