"""The detector: every five minutes, what of the last hour is unusual for the agent or tenant that did it.

A verdict follows from the rollups alone: nothing is carried from one tick to the next, so a restart changes none, and
an event that comes late, or twice, counts as it counts everywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from clickhouse.budget import Budget
from clickhouse.connection import Connection
from clickhouse.detection.history import DAY, HOUR, IN_THE_BACKGROUND, RECOUNT_SECONDS, History, hours_like
from clickhouse.detection.loops import PAGE, Candidate, Loops
from clickhouse.detection.progress import Progress
from clickhouse.detection.statements import statement

logger = logging.getLogger(__name__)

BIN: Final = 300
# Bins that a tick looks at once more: events may be this late and still raise, or end, an alert. What is later counts
# as history only, so that a backfill of a year raises nothing.
LOOK_BACK: Final = 12

# Statement -> kind.
_BY_BIN: Final = {
    "silences": "silence",
}
_BY_EVENT: Final = {"failures": "failures", "wastes": "waste", "new_networks": "new_network"}
_BY_HOUR: Final = {"unusual_hours": "unusual_hours", "dominances": "dominance"}
_WITHDRAW: Final = statement("withdraw")
_SPIKES: Final = statement("spikes")
_BUDGETS: Final = statement("budgets")
_VERDICT: Final = (
    "tenant_id", "kind", "agent_id", "bin", "severity", "score", "observed", "expected", "detail", "generation",
)  # fmt: skip
# After the service was away: by then its senders have sent again what it was not there for.
_SENT_AGAIN_SECONDS: Final = 3 * BIN
_NEAR_THE_LIMIT: Final = 0.5  # from here on a dashboard shows it


class Detector:
    """Of one store. One thread at a time; `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.time,
        recount_seconds: float = RECOUNT_SECONDS,
        events: bool = True,
        budgets: Callable[[], Sequence[Budget]] = lambda: (),
        working: threading.Lock | None = None,
    ) -> None:
        """`recount_seconds`: see History; `events` False: there are rollups only, and nothing to see but counts.

        `budgets` is asked at each round; `working` is held while one lasts, so that a removal can wait for its end.
        """
        self._connection = connection
        self._clock = clock
        self._budgets = budgets
        self._working = working or threading.Lock()
        self._loops = Loops()
        self._progress = Progress(connection)
        self._history = History(connection, self._progress, recount_seconds, events=events)
        self._by_bin = _BY_BIN | (_BY_EVENT if events else {})

    def tick(self) -> None:
        """Judges the bins that are over; those of the last hour again."""
        with self._working:
            self._tick()

    def _tick(self) -> None:
        until = int(self._clock()) // BIN * BIN
        reached = self._progress.read()
        back = reached.get("back", 0)
        if 0 < reached.get("judged", 0) < until - 2 * BIN:
            # Whoever did not judge did not take events either; they are about to be sent again.
            back = until
            self._progress.write(back=back)
        # What is not said of a silence now is said at the next round: that looks at these bins again.
        self.judge(until - LOOK_BACK * BIN, until, silences=not back <= until < back + _SENT_AGAIN_SECONDS)
        self._judge_budgets(until - BIN)

    def judge(self, since: int, until: int, *, silences: bool = True) -> None:
        """Judges the bins in [since, until), in Unix seconds, day by day; `silences`: those too."""
        reached = self._progress.read()
        judged = reached.get("judged", 0)
        # Two processes may be a few seconds apart; a clock that was set back is further off.
        if reached.get("hours", 0) > until + HOUR:
            self._history.rewind(since // HOUR * HOUR)
        for start, end in _days(since, until):
            self._history.bring_to(start, end)
            self._judge_bins(start, end, silences=silences)
            over = range(start // HOUR * HOUR, end - HOUR + 1, HOUR)
            self._judge_hours([hour for hour in over if hour + HOUR > judged])
        self._progress.write(judged=until)

    def _judge_bins(self, since: int, until: int, *, silences: bool) -> None:
        """Those of one day, or of a part of it."""
        generation = self._progress.generation()
        bins = {"since": since, "until": until, "generation": generation}
        self._judge_spikes(since, until, generation)
        by_bin = {name: kind for name, kind in self._by_bin.items() if silences or kind != "silence"}
        for name in by_bin:
            self._connection.command(statement(name), bins, **IN_THE_BACKGROUND)
        self._withdraw(["spike", *by_bin.values()], since, until, generation)

    def _judge_hours(self, hours: Sequence[int]) -> None:
        """What can be said of whole hours only, and by the hours like them; they are of one day."""
        if not hours:
            return
        generation, day = self._progress.generation(), hours[0] // DAY * DAY
        targets = [(hour - day) // HOUR for hour in hours]
        parameters = {"day": day, "targets": targets, "sources": [*hours_like(hours), *hours], "generation": generation}
        for name in _BY_HOUR:
            self._connection.command(statement(name), parameters, **IN_THE_BACKGROUND)
        self._withdraw([*_BY_HOUR.values()], hours[0], hours[-1] + HOUR, generation)

    def _judge_budgets(self, last_bin: int) -> None:
        budgets = self._budgets()
        if not budgets:
            return
        month = datetime.fromtimestamp(last_bin, UTC).replace(day=1, hour=0, minute=0, second=0)
        generation = self._progress.generation()
        parameters = {
            "bin": last_bin,
            "month": int(month.timestamp()),
            "next_month": int((month + timedelta(days=32)).replace(day=1).timestamp()),
            "tenants": [budget.tenant_id for budget in budgets],
            "agents": [budget.agent_id for budget in budgets],
            "tokens": [budget.tokens for budget in budgets],
            "generation": generation,
        }
        self._connection.command(_BUDGETS, parameters, **IN_THE_BACKGROUND)
        self._withdraw(["budget"], last_bin, last_bin + BIN, generation)

    def _judge_spikes(self, since: int, until: int, generation: int) -> None:
        bins = {"since": since, "until": until}
        verdicts = []
        for row in self._connection.rows(_SPIKES, bins, IN_THE_BACKGROUND):
            candidate = Candidate(*row[: len(Candidate._fields)])
            score = self._loops.score(row[len(Candidate._fields) :])
            if score > _NEAR_THE_LIMIT:
                severity = "page" if score > PAGE else "ticket"
                of, what = (candidate.tenant_id, "spike", candidate.agent_id, candidate.bin), candidate.seen()
                verdicts.append((*of, severity, score, *what, generation))
        if verdicts:
            self._connection.insert("verdicts", _VERDICT, list(zip(*verdicts, strict=True)))

    def _withdraw(self, kinds: list[str], since: int, until: int, generation: int) -> None:
        """Takes back what was said of these bins before `generation` and is not said any more."""
        bins = {"kinds": kinds, "since": since, "until": until, "generation": generation}
        self._connection.command(_WITHDRAW, bins, **IN_THE_BACKGROUND)


def _days(since: int, until: int) -> Iterator[tuple[int, int]]:
    """The stretch in pieces that lie within a day each."""
    while since < until:
        end = min(since // DAY * DAY + DAY, until)
        yield since, end
        since = end
