"""The watch as lines: alerts that last, scores and the band of what is expected, of the tenants that have series."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from clickhouse.alert import KINDS, SEVERITIES
from clickhouse.watch import Watch
from exporter.exposition import Piece, escape_label, metadata
from exporter.families import Family
from exporter.negotiation import Format

_AS_JUDGED: Final = "as of the detector's last round, every five minutes"


def _gauge(name: str, documentation: str) -> Family:
    return Family(f"agentidp_tenant_{name}", "gauge", f"{documentation}, {_AS_JUDGED}.", "", "%.9g")


ALERTS: Final = _gauge(
    "alerts", "Alerts of the tenant that last now; every kind and severity for a tenant that had one in seven days"
)
EXPECTED: Final = _gauge("expected_tokens", "Tokens expected in five minutes of this hour, and the band around it")
SPIKE: Final = _gauge("spike_score", "Highest spike score among the tenant's agents (1 is the limit; 0 below a half)")
SILENCE: Final = _gauge("silence_score", "How unusual the tenant's present silence is (1 is the limit; 0 below a half)")
WATCH_FAMILIES: Final = (ALERTS, EXPECTED, SPIKE, SILENCE)

_BOUNDS: Final = ("lower", "expected", "upper")
_LINES_A_PIECE: Final = 2_000


class WatchLines:
    """Renders the watch; what it rendered last again while neither it nor the tenants have changed."""

    def __init__(self) -> None:
        self._of: tuple[Watch, list[str]] | None = None
        self._pieces: dict[Format, list[Piece]] = {}
        self._metadata = {
            format_: [Piece.of(metadata(family, format_)) for family in WATCH_FAMILIES] for format_ in Format
        }

    def render(self, watch: Watch, tenant_ids: list[str], without: Collection[str]) -> dict[Format, list[Piece]]:
        """The pieces of all its families for `tenant_ids` but those of `without`."""
        shown = [tenant for tenant in tenant_ids if tenant not in without]
        if self._of is None or self._of[0] is not watch or self._of[1] != shown:
            self._of = (watch, shown)
            samples = [list(_pieces(lines)) for lines in _families(watch, shown)]
            self._pieces = {
                format_: [piece for first, rest in zip(heads, samples, strict=True) for piece in (first, *rest)]
                for format_, heads in self._metadata.items()
            }
        return self._pieces


def _families(watch: Watch, tenants: list[str]) -> Iterator[Iterator[str]]:
    """The lines of each family, in the order of `WATCH_FAMILIES`."""
    label = {tenant: f'tenant_id="{escape_label(tenant)}"' for tenant in tenants}
    yield (
        f'{ALERTS.name}{{{label[tenant]},kind="{kind}",severity="{severity}"}} {lasting.get((kind, severity), 0)}\n'
        for tenant in tenants
        if (lasting := watch.alerts.get(tenant)) is not None
        for kind in KINDS
        for severity in SEVERITIES
    )
    yield (
        f'{EXPECTED.name}{{{label[tenant]},bound="{bound}"}} {value:.9g}\n'
        for tenant in tenants
        if (band := watch.expected.get(tenant)) is not None
        for bound, value in zip(_BOUNDS, band, strict=True)
    )
    for family, scores in ((SPIKE, watch.spike), (SILENCE, watch.silence)):
        yield (
            f"{family.name}{{{label[tenant]}}} {scores.get(tenant, 0.0):.9g}\n" for tenant in tenants if watch.judged
        )


def _pieces(lines: Iterable[str]) -> Iterator[Piece]:
    block: list[str] = []
    for line in lines:
        block.append(line)
        if len(block) == _LINES_A_PIECE:
            yield Piece.of("".join(block).encode())
            block = []
    if block:
        yield Piece.of("".join(block).encode())
