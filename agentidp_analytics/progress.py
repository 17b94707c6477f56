"""Progress of work that people wait for."""

from __future__ import annotations

import sys
import time
from typing import Final, Self

import click

from agentidp_analytics.backfill import Tally


class Progress:
    """A line that is rewritten on a terminal; elsewhere a plain line every few seconds. A context manager.

    `seconds` is how long the work took, once the context is left.
    """

    _PLAIN_EVERY_SECONDS: Final = 5.0

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._said_at = self._started
        self.seconds = 0.0

    def events(self, tally: Tally) -> None:
        """Says how far a backfill is, how fast, and how long it still takes."""
        elapsed = time.monotonic() - self._started
        text = f"{tally.accepted:,} events, {tally.accepted / max(elapsed, 0.001):,.0f}/s, {tally.rejected:,} rejected"
        if tally.total and tally.done:
            share = min(1.0, tally.done / tally.total)
            text = f"[{'#' * int(share * 30):30}] {share:4.0%}  {text}, {elapsed / share - elapsed:,.0f} s left"
        self.say(text)

    def say(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif now - self._said_at >= self._PLAIN_EVERY_SECONDS:
            self._said_at = now
            click.echo(text, err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)
