"""Command-line options: how they are named and read, and those of every command that opens the store."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agentidp_analytics.logs import configure_logging

_F = TypeVar("_F", bound=Callable[..., Any])


def option(name: str, **arguments: Any) -> Callable[[_F], _F]:
    """A command-line option that can also be set by AGENTIDP_ANALYTICS_<OPTION>; the flag wins."""
    variable = "AGENTIDP_ANALYTICS_" + name.strip("-").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **arguments)


_LONGEST_SECONDS: Final = 3650 * 86400.0


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d; from `at_least` (seconds) to ten years."""

    name = "duration"

    def __init__(self, at_least: float = 0.0) -> None:
        self._at_least = at_least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; give one such as 90s, 15m, 24h or 7d", param, ctx)
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        if not self._at_least <= seconds <= _LONGEST_SECONDS:
            self.fail(f"{value} is out of range; give {self._at_least:g}s to 3650d", param, ctx)
        return seconds


class PerSecond(click.ParamType[float]):
    """How many a second: a decimal number above 0, a billion at most."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        is_number = isinstance(value, float) or re.fullmatch(r"[0-9]{1,10}(?:\.[0-9]{1,10})?", str(value))
        if not is_number or not 0 < float(value) <= 1e9:
            self.fail(f"{value!r} is no rate; give a number a second above 0, such as 200", param, ctx)
        return float(value)


class Address(click.ParamType[tuple[str, int]]):
    """host:port."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})", str(value))
        if match is None or int(match[3]) > 65535:
            self.fail(f"{value!r} is no address; give host:port, such as 127.0.0.1:3000", param, ctx)
        return match[1] or match[2], int(match[3])


def options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Several options as one decorator, in the order given."""

    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


EXISTING_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def default_dsn() -> str:
    """The embedded store in the working directory."""
    return f"chdb://{Path.cwd() / 'data'}"


def _configure_logging(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    configure_logging(value)


# fmt: off
cluster_option = option("--cluster", help="Name of the ClickHouse cluster to make replicated, sharded tables on.")
log_format_option = option(
    "--log-format", type=click.Choice(["json", "text"]), callback=_configure_logging, expose_value=False,
    help="Of the structured logs on stderr.  [default: text on a terminal, else json]",
)
store_options = options(
    option("--dsn", default=default_dsn, show_default="chdb:///<cwd>/data",
           help="The store: chdb:///path (embedded) or clickhouse(s)://, http(s)://user:password@host:port/database."),
    cluster_option,
    log_format_option,
)
# fmt: on
