"""The file of --budgets, and what the detector makes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentidp_analytics.budgets_file import BudgetsError, BudgetsFile, read_budgets
from clickhouse.alerts import Alerts
from clickhouse.budget import Budget
from clickhouse.connection import Connection
from clickhouse.detection.detector import Detector

GOOD = '[tenants]\norg-a = 100\n\n[agents.org-a]\n"agent one" = 20\n'
NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)


def test_budgets_are_of_tenants_and_of_agents(tmp_path: Path) -> None:
    (path := tmp_path / "budgets.toml").write_text(GOOD)
    assert read_budgets(path) == [Budget("org-a", "", 100), Budget("org-a", "agent one", 20)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tenants\n", "cannot be read"),
        ("[tenants]\norg-a = 0\n", "org-a = 0"),
        ("[tenants]\norg-a = 1.5\n", "org-a = 1.5"),
        ("[tenants]\norg-a = true\n", "org-a = True"),
        ('[tenants]\n"no tenant" = 5\n', "no tenant"),
        ("[tenant]\norg-a = 5\n", "'tenant'"),
        ("tenants = 5\n", "tenants is 5"),
        ('[agents.org-a]\n"a\\u0007" = 5\n', "no id"),
        ("[agents]\norg-a = 5\n", "agents.org-a is 5"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    (path := tmp_path / "budgets.toml").write_text(text)
    with pytest.raises(BudgetsError) as refused:
        BudgetsFile(path)
    line = str(refused.value)
    assert "\n" not in line
    assert named in line
    assert str(path) in line


def test_a_change_is_read_and_a_wrong_one_leaves_what_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path := tmp_path / "budgets.toml").write_text(GOOD)
    file = BudgetsFile(path)

    def now() -> tuple[list[Budget], bool]:
        return file.current(), file.reload_worked

    path.write_text("[tenants]\norg-b = 7\n")
    assert now() == ([Budget("org-b", "", 7)], True)
    path.write_text("[tenants]\norg-b = -7 # no\n")
    assert now() == ([Budget("org-b", "", 7)], False)
    assert "the budgets before go on" in caplog.text
    path.unlink()
    assert now() == ([Budget("org-b", "", 7)], False)


def _spend(connection: Connection, tenant: str, agent: str, tokens: int, days: int) -> None:
    """So many tokens on each of the days that end yesterday."""
    dates = [(NOW - timedelta(days=ago)).date() for ago in range(1, days + 1)]
    rows = len(dates)
    connection.insert(
        "agent_day", ("tenant_id", "day", "agent_id", "issued", "generation"),
        [[tenant] * rows, dates, [agent] * rows, [tokens] * rows, [1] * rows],
    )  # fmt: skip
    connection.insert(
        "tenant_day",
        ("tenant_id", "day", "issued", "generation"),
        [[tenant] * rows, dates, [tokens] * rows, [1] * rows],
    )


def test_a_budget_that_is_used_or_will_be_raises_an_alert(connection: Connection) -> None:
    _spend(connection, "over", "a", 20, 15)  # 180 of November so far
    _spend(connection, "soon", "a", 20, 15)
    _spend(connection, "fine", "a", 20, 15)
    budgets = [Budget("over", "", 100), Budget("over", "a", 10_000), Budget("soon", "", 400), Budget("fine", "", 700)]
    clock = NOW.timestamp
    Detector(connection, clock=clock, budgets=lambda: budgets).tick()
    found = {
        alert.tenant_id: alert
        for alert in Alerts(connection).of_all(int(clock()) - 86_400, int(clock()))
        if alert.kind == "budget"
    }
    assert found.keys() == {"over", "soon"}
    assert (found["over"].severity, found["over"].observed, found["over"].expected) == ("ticket", 180, 100)
    assert found["over"].message.startswith("Tenant over has used 180 tokens this month, of a budget of 100")
    # 20 a day for the 20.5 days to come.
    assert found["soon"].severity == "info"
    assert found["soon"].observed == pytest.approx(180 + 20 * 20.5, abs=1)
    Detector(connection, clock=clock, budgets=lambda: [Budget("over", "", 1000)]).tick()
    again = Alerts(connection).of_all(int(clock()) - 86_400, int(clock()))
    assert [alert for alert in again if alert.kind == "budget"] == []
