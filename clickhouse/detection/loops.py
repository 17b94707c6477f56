"""The loop model: what tells an agent in a loop from one with a busy hour, as boosted trees in a file.

The statement `spikes` finds the bins in which an agent did more than on its best day, some 17 a week and tenant, and
describes each by 24 figures. The trees weigh them. docs/detection.md says how they were grown and what they reach.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

PAGE: Final = 2.0  # the score from which somebody is to be woken


class Loops:
    """The model of the file. In plain Python, because a few candidates a minute are all that it is asked about."""

    def __init__(self) -> None:
        model = json.loads(files("clickhouse.detection").joinpath("loops.json").read_text(encoding="utf-8"))
        self.features: Final[tuple[str, ...]] = tuple(model["features"])
        self._trees: Final[list[list[list[float]]]] = model["trees"]
        self._ticket: Final[float] = model["ticket"]
        self._page: Final[float] = model["page"]

    def raw_score(self, features: Sequence[float]) -> float:
        """The sum of all trees for `features`, in the order of their names."""
        return math.fsum(_leaf(tree, features) for tree in self._trees)

    def score(self, features: Sequence[float]) -> float:
        """The same on a scale on which 1 opens a ticket and `PAGE` pages, and each doubling is as far again."""
        return float(PAGE ** ((self.raw_score(features) - self._ticket) / (self._page - self._ticket)))


class Candidate(NamedTuple):
    """What a row of `spikes` begins with; its features follow."""

    tenant_id: str
    agent_id: str
    bin: int
    of_five_minutes: float
    of_a_quarter: float
    of_an_hour: float
    usual: float  # tokens of five minutes at this hour

    def seen(self) -> tuple[float, float, str]:
        """(observed, expected, how long) of the window that stands out most."""
        windows = (
            (self.of_five_minutes, self.usual, "five minutes"),
            (self.of_a_quarter, 3 * self.usual, "15 minutes"),
            (self.of_an_hour, 12 * self.usual, "an hour"),
        )
        return max(windows, key=lambda window: (window[0] - window[1]) / math.sqrt(window[1] + 1))


def _leaf(tree: Sequence[Sequence[float]], features: Sequence[float]) -> float:
    node = tree[0]
    while len(node) > 1:
        feature, threshold, left, right = node
        node = tree[int(left if features[int(feature)] <= threshold else right)]
    return node[0]
