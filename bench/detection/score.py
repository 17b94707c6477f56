"""Alarms against labels.

Only what starts from day 35 after the trace's first bin on is scored: before that there is too little history. A false
alarm is an episode (alarms of one tenant no more than two hours apart are one) that overlaps no labelled event of its
tenant, from the event's start to two hours after its end. An event is found by an alarm of its tenant, and of its agent
unless one of both is of the tenant as a whole, that was raised while it lasted: by the counts of a bin that begins
neither before the event nor after it. The time it took is from its start to the END of that bin, five minutes at least.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bench.detection.alarm import Alarm
from bench.detection.label import AgentKind, Label
from bench.detection.rate import Rate, Share
from bench.detection.shapes import KINDS
from bench.detection.traces import BIN_SECONDS, Trace

SCORED_FROM_DAY: Final = 35
MERGED_SECONDS: Final = 2 * 3600
AFTERMATH_SECONDS: Final = 2 * 3600
FOLDS: Final = 5
ALL_KINDS: Final = "all kinds"
PAGE: Final = frozenset({"page"})
PAGE_AND_TICKET: Final = frozenset({"page", "ticket"})
_WEEK: Final = 7 * 86_400


class Fleet(NamedTuple):
    """What is scored: from when on, the weeks of each tenant from then or from its first token on, its agents."""

    scored_from: int
    weeks: Mapping[str, float]
    agents: Mapping[tuple[str, str], AgentKind]

    @property
    def folds(self) -> list[frozenset[str]]:
        """Five disjoint sets of tenants."""
        return [frozenset(sorted(self.weeks)[number::FOLDS]) for number in range(FOLDS)]


def fleet_of(trace: Trace, agents: Mapping[tuple[str, str], AgentKind]) -> Fleet:
    """The fleet of a trace."""
    scored_from = trace.first + SCORED_FROM_DAY * 86_400
    weeks = {
        tenant: max(0, trace.end - max(scored_from, first)) / _WEEK
        for tenant, first in trace.first_of_tenants().items()
    }
    return Fleet(scored_from, weeks, agents)


class Question(NamedTuple):
    """Which events are asked about, what an alarm has to be called to have found one, and how soon (seconds)."""

    name: str
    of: str
    raised_as: frozenset[str] | None
    wanted: Callable[[Label, AgentKind | None], bool] = lambda label, kind: True
    within: int | None = None


def _material(label: Label, kind: AgentKind | None) -> bool:
    return label.first10 >= 100


def _of_kind(wanted: str) -> Callable[[Label, AgentKind | None], bool]:
    return lambda label, kind: label.first10 >= 100 and kind is not None and kind.kind == wanted


def _at_network(wanted: str) -> Callable[[Label, AgentKind | None], bool]:
    return lambda label, kind: kind is not None and kind.network == wanted


_SPIKE: Final = frozenset({"spike"})
_NETWORK: Final = frozenset({"new_network"})
QUESTIONS: Final = (
    Question("loops", "retry", _SPIKE),
    Question("loops, 20 tokens or more", "retry", _SPIKE, lambda label, kind: label.extra >= 20),
    Question("material loops: 100 tokens in 10 min", "retry", _SPIKE, _material),
    Question("  within 10 min", "retry", _SPIKE, _material, 600),
    Question("  within 5 min", "retry", _SPIKE, _material, 300),
    Question("  by an alert of any kind", "retry", None, _material),
    *(Question(f"  of {kind} agents", "retry", _SPIKE, _of_kind(kind)) for kind in KINDS),
    Question("silences, 10 tokens expected", "silence", frozenset({"silence"}), lambda label, _: label.expected >= 10),
    Question("leaks at odd hours, within 48 h", "leak", frozenset({"unusual_hours"}), within=48 * 3600),
    Question("leaks from elsewhere, within 1 h", "leak_network", _NETWORK, within=3600),
    *(
        Question(f"  of agents at network {network}", "leak_network", _NETWORK, _at_network(network), 3600)
        for network in ("nat", "cloud", "rotating", "runners", "ipv6")
    ),
    Question("  of tenants that tell no address", "leak_network", _NETWORK, _at_network(""), 3600),
    Question("leaks from the agent's network", "leak_inside", None),
    Question("storms of failures", "failures", frozenset({"failures"})),
    Question("work at weekends", "weekend", frozenset({"unusual_hours", "spike"})),
)


PEERS_QUESTIONS: Final = tuple(
    question for question in QUESTIONS if question.raised_as is None or question.raised_as & {"spike", "silence"}
)


class Figures(NamedTuple):
    """False alarms by kind of alarm, `ALL_KINDS` among them; what was found by question, those without an event left
    out.
    """

    false_alarms: Mapping[str, Rate]
    found: Mapping[str, Share]


def score(
    alarms: Sequence[Alarm],
    labels: Sequence[Label],
    fleet: Fleet,
    severities: frozenset[str],
    questions: Sequence[Question] = QUESTIONS,
) -> Figures:
    """The figures of the alarms of these severities. Raises ValueError for alarms of tenants that are not in the trace:
    they would count in no tenant's week.
    """
    if strange := {alarm.tenant for alarm in alarms} - fleet.weeks.keys():
        raise ValueError(f"alarms of tenants that the trace has not: {', '.join(sorted(strange)[:5])}")
    counted = [alarm for alarm in alarms if alarm.severity in severities and alarm.start >= fleet.scored_from]
    kinds = sorted({alarm.kind for alarm in counted})
    false_alarms = {ALL_KINDS: _false_alarms(counted, labels, fleet)}
    for kind in kinds:
        false_alarms[kind] = _false_alarms([alarm for alarm in counted if alarm.kind == kind], labels, fleet)
    scored = [label for label in labels if label.start >= fleet.scored_from]
    asked = ((question.name, _found(question, counted, scored, fleet)) for question in questions)
    return Figures(false_alarms, {name: share for name, share in asked if share.total})


def episodes(alarms: Iterable[Alarm]) -> dict[str, list[tuple[int, int]]]:
    """(start, end) of each tenant's episodes, in order of time; an alarm lasts one bin at least."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for alarm in sorted(alarms, key=lambda one: one.start):
        end = max(alarm.end, alarm.start + BIN_SECONDS)
        known = found[alarm.tenant]
        if known and alarm.start - known[-1][1] <= MERGED_SECONDS:
            known[-1] = (known[-1][0], max(known[-1][1], end))
        else:
            known.append((alarm.start, end))
    return found


def _false_alarms(alarms: Sequence[Alarm], labels: Sequence[Label], fleet: Fleet) -> Rate:
    events: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for label in labels:
        events[label.tenant].append((label.start, label.end + AFTERMATH_SECONDS))
    wrong = {
        tenant: sum(not any(start < over and end > begins for begins, over in events[tenant]) for start, end in known)
        for tenant, known in episodes(alarms).items()
    }
    folds = [
        (sum(wrong.get(tenant, 0) for tenant in fold), sum(fleet.weeks[tenant] for tenant in fold))
        for fold in fleet.folds
    ]
    return Rate(sum(wrong.values()), sum(fleet.weeks.values()), folds)


def _found(question: Question, alarms: Sequence[Alarm], labels: Sequence[Label], fleet: Fleet) -> Share:
    raised: dict[str, list[Alarm]] = defaultdict(list)
    for alarm in sorted(alarms, key=lambda one: one.start):
        if question.raised_as is None or alarm.kind in question.raised_as:
            raised[alarm.tenant].append(alarm)
    asked = [
        label
        for label in labels
        if label.kind == question.of and question.wanted(label, fleet.agents.get((label.tenant, label.agent)))
    ]
    took = [_seconds_to(label, raised[label.tenant], question.within) for label in asked]
    pairs = list(zip(asked, took, strict=True))
    folds = [
        (
            sum(seconds is not None for label, seconds in pairs if label.tenant in fold),
            sum(label.tenant in fold for label in asked),
        )
        for fold in fleet.folds
    ]
    seconds = [one for one in took if one is not None]
    return Share(len(seconds), len(asked), folds, seconds)


def _seconds_to(label: Label, raised: list[Alarm], within: int | None) -> int | None:
    """From the event's start to the end of the bin that found it; None when none did, or none in time."""
    for alarm in raised[bisect_left(raised, label.start, key=lambda one: one.start) :]:
        took = alarm.start + BIN_SECONDS - label.start
        if alarm.start >= label.end or (within is not None and took > within):
            return None
        if not label.agent or alarm.agent in ("", label.agent):
            return took
    return None
