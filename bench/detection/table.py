"""The figures of several rules side by side, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.detection.rate import Rate, Share
from bench.detection.score import ALL_KINDS, Figures

_NAME_WIDTH: Final = 48
_WIDTH: Final = 23


def table(columns: Mapping[str, Figures], tenants: int, weeks: float) -> str:
    """Rates and shares by rule, with what the reader needs to judge them. The first rule was asked every question."""
    figures = list(columns.values())
    kinds = [ALL_KINDS, *sorted({kind for one in figures for kind in one.false_alarms} - {ALL_KINDS})]
    lines = [
        f"{tenants} tenants, {weeks:,.1f} tenant-weeks scored",
        "",
        _line("", list(columns)),
        "false alarms a tenant-week, 95 % interval",
        *(_line(f"  {kind}", [_rate(one.false_alarms.get(kind)) for one in figures]) for kind in kinds),
        _line("  all kinds, lowest to highest of 5 folds", [_spread(one.false_alarms[ALL_KINDS]) for one in figures]),
        "",
        "found, lowest to highest of 5 folds",
    ]
    asked = figures[0].found
    for question, share in asked.items():
        shares = [_share(one.found.get(question)) for one in figures]
        lines.append(_line(f"  {question} (n {share.total})", shares))
    lines += ["", "median minutes from the start to the end of the bin that raised it, of those found"]
    for question in asked:
        if not question.startswith(" "):
            lines.append(_line(f"  {question}", [_minutes(one.found.get(question)) for one in figures]))
    return "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<{_NAME_WIDTH}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)).rstrip()


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    low, high = rate.interval
    return f"{rate.per_week:.4f} {low:.4f}-{high:.4f}"


def _spread(rate: Rate) -> str:
    low, high = rate.spread
    return f"{low:.4f}-{high:.4f}"


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    low, high = share.spread
    return f"{share.share:.3f} {low:.2f}-{high:.2f}"


def _minutes(share: Share | None) -> str:
    return f"{median(share.seconds) / 60:,.0f}" if share and share.seconds else "-"
