"""The command: from a trace to a file of alerts and a table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bench.detection.__main__ as command
from bench.detection.alarm import Alarm, read_alarms
from bench.detection.generate import EVENTS_FILE, generate
from bench.detection.label import LABELS_FILE, read_labels
from bench.detection.local_time import DAYS, START
from bench.detection.traces import COUNTS_FILE

SEED = 32
SCORED_FROM = START + 36 * 86_400  # the first token is within the first day


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace")
    generate([SEED], path, fields=True)
    return path


def run(monkeypatch: pytest.MonkeyPatch, alarms: list[Alarm], *arguments: object) -> list[dict[str, Path | None]]:
    """Runs the command with a replay that raises these; what the replay was asked."""
    asked: list[dict[str, Path | None]] = []

    def replay(*, traces: Path | None, events: Path | None, progress: Callable[[str], None]) -> list[Alarm]:
        asked.append({"traces": traces, "events": events})
        progress("replayed")
        return alarms

    monkeypatch.setattr(command, "replay", replay)
    monkeypatch.setattr(sys, "argv", ["detection", *map(str, arguments)])
    command.main()
    return asked


def a_loop(directory: Path) -> Alarm:
    """An alarm in the first bin of one."""
    loop = next(
        label for label in read_labels(directory / LABELS_FILE) if label.kind == "retry" and label.start > SCORED_FROM
    )
    return Alarm(loop.tenant, loop.agent, "spike", "ticket", loop.start, loop.end)


def rows(text: str) -> dict[str, list[str]]:
    return {line[:48].strip(): line[48:].split() for line in text.splitlines() if line.startswith("  ")}


def test_a_trace_is_scored_beside_the_peers(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm, out = a_loop(directory), tmp_path / "alerts.csv"
    asked = run(monkeypatch, [alarm], "--traces", directory, "--out", out)
    assert asked == [{"traces": directory, "events": None}]
    assert read_alarms(out) == [alarm]
    printed = capsys.readouterr()
    assert "replayed" in printed.err
    loops = sum(
        label.kind == "retry" and label.start > SCORED_FROM - 86_400 for label in read_labels(directory / LABELS_FILE)
    )
    (cells,) = (cells for name, cells in rows(printed.out).items() if name.startswith("loops (n"))
    assert f"loops (n {loops})" in printed.out
    assert (cells[0], cells[2]) == ("0.000", f"{1 / loops:.3f}")
    assert len(cells) == 2 * 5


@pytest.mark.parametrize("counts", [True, False])
def test_events_are_scored_with_or_without_their_counts(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], counts: bool
) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    if not counts:
        (tmp_path / "copy" / COUNTS_FILE).unlink()
    events = tmp_path / "copy" / EVENTS_FILE
    asked = run(monkeypatch, [], "--events", events, "--out", tmp_path / "alerts.csv")
    assert asked == [{"traces": None, "events": events}]
    weeks = (DAYS - 35) / 7
    assert f"1 tenants, {weeks:.1f} tenant-weeks scored" in capsys.readouterr().out


def test_without_labels_there_are_alerts_only(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(directory / EVENTS_FILE, tmp_path)
    run(monkeypatch, [a_loop(directory)], "--events", tmp_path / EVENTS_FILE, "--out", tmp_path / "alerts.csv")
    assert len(read_alarms(tmp_path / "alerts.csv")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"no {LABELS_FILE}" in printed.err
