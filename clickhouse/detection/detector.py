"""The detector: every five minutes, what of the last hour is unusual for the agent or tenant that did it.

A verdict follows from the rollups alone: nothing is carried from one tick to the next, so a restart changes none, and
an event that comes late, or twice, counts as it counts everywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from clickhouse.connection import Connection
from clickhouse.detection.history import HOUR, IN_THE_BACKGROUND, RECOUNT_SECONDS, History, hours_like
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
    "wastes": "waste",
    "new_networks": "new_network",
    "failures": "failures",
}
_BY_HOUR: Final = {"unusual_hours": "unusual_hours", "dominances": "dominance"}
_WITHDRAW: Final = statement("withdraw")
_SPIKES: Final = statement("spikes")
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
    ) -> None:
        """`recount_seconds`: see History."""
        self._connection = connection
        self._clock = clock
        self._loops = Loops()
        self._progress = Progress(connection)
        self._history = History(connection, self._progress, recount_seconds)

    def tick(self) -> None:
        """Judges the bins that are over; those of the last hour again."""
        until = int(self._clock()) // BIN * BIN
        reached = self._progress.read()
        back = reached.get("back", 0)
        if 0 < reached.get("judged", 0) < until - 2 * BIN:
            # Whoever did not judge did not take events either; they are about to be sent again.
            back = until
            self._progress.write(back=back)
        # What is not said of a silence now is said at the next round: that looks at these bins again.
        self.judge(until - LOOK_BACK * BIN, until, silences=not back <= until < back + _SENT_AGAIN_SECONDS)

    def judge(self, since: int, until: int, *, silences: bool = True) -> None:
        """Judges the bins in [since, until), in Unix seconds, hour by hour; `silences`: those too."""
        reached = self._progress.read()
        judged = reached.get("judged", 0)
        # Two processes may be a few seconds apart; a clock that was set back is further off.
        if reached.get("hours", 0) > until + HOUR:
            self._history.rewind(since // HOUR * HOUR)
        for start, end in _hours(since, until):
            self._history.bring_to(start // HOUR * HOUR)
            self._judge_spikes(start, end)
            for name, kind in _BY_BIN.items():
                if silences or kind != "silence":
                    self._judge(name, kind, start, end)
            if end % HOUR == 0 and judged < end:
                self._history.bring_to(end)
                hour = end - HOUR
                for name, kind in _BY_HOUR.items():
                    self._judge(name, kind, hour, end, hour=hour, hours=hours_like(hour))
        self._progress.write(judged=until)

    def _judge_spikes(self, since: int, until: int) -> None:
        generation = self._progress.generation()
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
        self._connection.command(_WITHDRAW, {**bins, "generation": generation, "kind": "spike"}, **IN_THE_BACKGROUND)

    def _judge(self, name: str, kind: str, since: int, until: int, **more: object) -> None:
        generation = self._progress.generation()
        bins = {"since": since, "until": until, "generation": generation}
        self._connection.command(statement(name), {**(more or bins), "generation": generation}, **IN_THE_BACKGROUND)
        self._connection.command(_WITHDRAW, {**bins, "kind": kind}, **IN_THE_BACKGROUND)


def _hours(since: int, until: int) -> Iterator[tuple[int, int]]:
    """The stretch in pieces that lie within an hour each."""
    while since < until:
        end = min(since // HOUR * HOUR + HOUR, until)
        yield since, end
        since = end
