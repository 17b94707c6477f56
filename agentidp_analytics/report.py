"""Alerts and an agent's detail as text for a terminal, from the JSON that the service shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

_BAR: Final = 40
_USED: Final = {
    "networks": "networks",
    "userAgents": "user agents",
    "grantTypes": "grant types",
    "scopes": "scopes",
}


def alert_table(alerts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each alert, in the order given, below a line of headings."""
    rows = [("since (UTC)", "until (UTC)", "severity", "kind", "tenant", "agent", "score", "message")]
    rows += [
        (
            _minute(alert["since"]),
            "lasts" if alert["until"] is None else _minute(alert["until"]),
            alert["severity"],
            alert["kind"],
            alert["tenantId"],
            "-" if alert["agentId"] is None else printable(alert["agentId"]),
            f"{alert['score']:.2f}",
            printable(alert["message"]),
        )
        for alert in alerts
    ]
    return _columns(rows, right={6})


def agent_report(detail: dict[str, Any], alerts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """An agent's detail, section by section, and then its alerts."""
    yield f"agent {printable(detail['agentId'])} of tenant {detail['tenantId']}, last {detail['days']} days (UTC)"
    yield ""
    yield f"first seen   {_second(detail['firstSeen'])}"
    yield f"last seen    {_second(detail['lastSeen'])}"
    yield f"tokens       {detail['issued']:,} issued, {detail['failures']:,} requests failed"
    unknown = "not known: no event of it has expires_in"
    outstanding, wasted = detail["outstanding"], detail["wasted"]
    yield "outstanding  " + (unknown if outstanding is None else f"{outstanding:,} not expired yet")
    yield "wasted       " + (
        unknown
        if wasted is None
        else f"{wasted:.0%} issued while an earlier one of the same scope had over half its lifetime left"
    )
    yield from _section("days", _days(detail["data"]))
    for name, heading in _USED.items():
        yield from _section(heading, _used(detail[name]))
    yield from _section("alerts", alert_table(alerts) if alerts else ["none"])


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey: a sender chose it, and it is shown to an operator."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _section(heading: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield heading
    for line in lines:
        yield f"  {line}"


def _days(days: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each day with a bar of its tokens; failures where there are any."""
    most = max([1, *(day["count"] for day in days)])
    width = len(f"{most:,}")
    for day in days:
        bar = "#" * -(-_BAR * day["count"] // most)
        failed = f"{day['failures']:,} failed" if day["failures"] else ""
        yield f"{day['date']}  {day['count']:>{width},}  {bar} {failed}".rstrip()


def _used(entries: Sequence[dict[str, Any]]) -> Iterable[str]:
    if not entries:
        return ["none told"]
    rows = [("tokens", "first", "last", "")]
    rows += [
        (f"{e['count']:,}", _minute(e["firstSeen"]), _minute(e["lastSeen"]), printable(e["value"])) for e in entries
    ]
    return _columns(rows, right={0})


def _columns(rows: Sequence[Sequence[str]], right: set[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _minute(moment: str) -> str:
    """An RFC 3339 moment in UTC, to the minute."""
    return moment[:16].replace("T", " ")


def _second(moment: str) -> str:
    return moment[:19].replace("T", " ")
