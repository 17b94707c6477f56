"""Which format and encoding a scraper gets: pure functions of its Accept and Accept-Encoding headers."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum


class Format(Enum):
    """An exposition format; the value is its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def choose_format(accept: str) -> Format:
    """The format for an Accept header (RFC 9110 section 12.5.1); several headers are joined with commas.

    OpenMetrics only for a client that names it, with a weight at least that of text: curl and browsers send
    `*/*` and get text. A client that accepts neither gets text too, as every Prometheus exporter answers it.
    """
    openmetrics: tuple[int, float] = (-1, 0.0)  # specificity of the media range, weight
    text: tuple[int, float] = (-1, 0.0)
    for media_range, parameters, weight in _weighted(accept):
        version = parameters.get("version")
        match media_range:
            case "application/openmetrics-text" if version in (None, "1.0.0"):
                openmetrics = max(openmetrics, (2, weight))
            case "application/*":
                openmetrics = max(openmetrics, (1, weight))
            case "text/plain" if version in (None, "0.0.4"):
                text = max(text, (2, weight))
            case "text/*":
                text = max(text, (1, weight))
            case "*/*":
                text = max(text, (0, weight))
    return Format.OPENMETRICS if openmetrics[1] > 0 and openmetrics[1] >= text[1] else Format.TEXT


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110 section 12.5.3) allows gzip and does not prefer no encoding."""
    weights = {coding: weight for coding, _, weight in _weighted(accept_encoding)}
    gzip = weights.get("gzip", weights.get("*", 0.0))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weighted(header: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(value, parameters, weight) of each list element; an element with a weight that is no number is left out."""
    for element in header.lower().split(","):
        value, *rest = (part.strip() for part in element.split(";"))
        parameters = {name.strip(): text.strip(' "') for name, _, text in (part.partition("=") for part in rest)}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            continue
        if value and 0 <= weight <= 1:
            yield value, parameters, weight
