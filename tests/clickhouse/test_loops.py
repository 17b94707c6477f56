"""The loop model: the trees of the file are walked as those who grew them walked them."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from clickhouse.detection.loops import PAGE, Candidate, Loops
from clickhouse.detection.statements import statement

# Features, and the score that the library gave with which the trees were grown.
VECTORS = json.loads(files("tests.support").joinpath("loop_vectors.json").read_text())


@pytest.mark.parametrize(("features", "score"), VECTORS)
def test_a_candidate_has_the_score_of_the_library(features: list[float], score: float) -> None:
    assert Loops().raw_score(features) == pytest.approx(score, abs=1e-3)


def test_one_opens_a_ticket_and_two_page() -> None:
    loops = Loops()
    ordered = sorted(VECTORS, key=lambda vector: vector[1])
    scores = [loops.score(features) for features, _ in ordered]
    assert scores == sorted(scores)
    assert scores[0] < 1 < PAGE < scores[-1]


def test_the_statement_gives_the_features_in_the_order_of_the_trees() -> None:
    given = statement("spikes").split("FROM", 1)[0]
    places = [given.index(f" AS {name}") for name in Loops().features]
    assert places == sorted(places)


def test_what_stands_out_most_is_told() -> None:
    def seen(bin_: float, quarter: float, hour: float) -> tuple[float, float, str]:
        return Candidate("t", "a", 0, bin_, quarter, hour, usual=1.0).seen()

    assert seen(100, 102, 110) == (100, 1.0, "five minutes")
    assert seen(20, 60, 70) == (60, 3.0, "15 minutes")
    assert seen(5, 15, 60) == (60, 12.0, "an hour")
