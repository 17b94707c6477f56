"""The file of alerts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.detection.alarm import Alarm, read_alarms, write_alarms

LATER = Alarm("org-b", "", "silence", "ticket", 600, 1200)
FIRST = Alarm('org,"a"', "agent 1", "spike", "page", 300, 300)


def test_what_was_written_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "alerts.csv"
    write_alarms(path, [LATER, FIRST])
    assert read_alarms(path) == [FIRST, LATER]
    assert path.read_text().splitlines()[0] == "tenant,agent,kind,severity,start,end"
    assert path.read_text().splitlines()[2] == "org-b,,silence,ticket,600,1200"


def test_no_alerts_are_a_header(tmp_path: Path) -> None:
    write_alarms(tmp_path / "alerts.csv", [])
    assert read_alarms(tmp_path / "alerts.csv") == []


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "alerts.csv"
    path.write_text("tenant,agent,kind,start,end\n")
    with pytest.raises(ValueError, match="columns tenant,agent,kind,start,end"):
        read_alarms(path)
