"""The file of --budgets: monthly token budgets of tenants and agents, read again when it changes."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clickhouse.budget import Budget
from clickhouse.event import CONTROL_CHARACTERS, MAX_ID_LENGTH
from clickhouse.tenant import is_tenant_id
from query_api.file_watch import FileWatch

logger = logging.getLogger(__name__)

MAX_BUDGET: Final = 2**63 - 1


class BudgetsError(ValueError):
    """A budget file that cannot be used; one line that names the file, the entry and what it must be."""


class BudgetsFile:
    """A TOML file, read again when it changes: `org-a = 100000` under [tenants], and under [agents.org-a] its agents.

    Raises BudgetsError when it is made on a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reload_worked = True
        self.read_at = time.time()  # Unix seconds of the last time that it could be read
        self._watch = FileWatch(path)
        self._budgets = read_budgets(path)

    def current(self) -> list[Budget]:
        """The budgets as of now: those of the file, or the last ones it had while it cannot be used."""
        self.refresh()
        return self._budgets

    def refresh(self) -> None:
        """Reads the file if it has changed; one that cannot be used leaves what was."""
        if not self._watch.changed():
            return
        try:
            self._budgets = read_budgets(self.path)
        except BudgetsError as error:
            self.reload_worked = False
            logger.warning("%s; the budgets before go on", error)
        else:
            self.reload_worked, self.read_at = True, time.time()
            logger.info("--budgets %s was read again: %d budgets", self.path, len(self._budgets))


def read_budgets(path: Path) -> list[Budget]:
    """The budgets of a file, in its order. Raises BudgetsError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BudgetsError(f"--budgets {path} cannot be read: {error}") from error
    unknown = [name for name in content if name not in ("tenants", "agents")]
    if unknown:
        raise BudgetsError(f"--budgets {path} has {unknown[0]!r}; it takes the tables tenants and agents")
    budgets = [
        _budget(path, "tenants", tenant, "", tokens) for tenant, tokens in _table(path, content, "tenants").items()
    ]
    for tenant, agents in _table(path, content, "agents").items():
        for agent, tokens in _table(path, {f"agents.{tenant}": agents}, f"agents.{tenant}").items():
            budgets.append(_budget(path, f"agents.{tenant}", tenant, agent, tokens))
    return budgets


def _table(path: Path, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise BudgetsError(f"--budgets {path}: {name} is {table!r}; it must be a table")
    return table


def _budget(path: Path, table: str, tenant: str, agent: str, tokens: Any) -> Budget:
    entry = f"--budgets {path}: [{table}] {agent or tenant}"
    if not is_tenant_id(tenant) or len(agent) > MAX_ID_LENGTH or CONTROL_CHARACTERS.search(agent):
        raise BudgetsError(f"{entry} is no id that an event could have")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MAX_BUDGET:
        raise BudgetsError(f"{entry} = {tokens!r}; a budget is a whole number of tokens from 1 to {MAX_BUDGET}")
    return Budget(tenant, agent, tokens)
