"""A slice of the torture; `make torture` runs it for as long as wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture import torture

SEED = 20261123


@pytest.mark.parametrize(("server", "kills"), [(False, 10), (True, 6)], ids=["embedded", "server"])
def test_every_answered_event_counts_once_whatever_is_killed(tmp_path: Path, server: bool, kills: int) -> None:
    outcome = torture(tmp_path, 5, SEED, server=server, least_kills=kills)
    assert (outcome.lost, outcome.doubled, outcome.other) == (0, 0, [])
    assert outcome.events > 200


def test_without_durable_marks_the_same_run_loses_events(tmp_path: Path) -> None:
    """The control: a torture that could not fail would prove nothing."""
    outcome = torture(tmp_path, 1, SEED, server=False, least_kills=4, forget_marks=True)
    assert outcome.lost > 0 or outcome.other
