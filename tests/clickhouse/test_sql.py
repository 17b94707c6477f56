"""SQL lives in clickhouse/ only, and no statement is built from a value."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.service import ROOT

MODULES = sorted(
    path
    for room in ("agentidp_analytics", "clickhouse", "query_api", "exporter")
    for path in (ROOT / room).rglob("*.py")
)
SQL = re.compile(
    r"\b(SELECT\b.+\bFROM|INSERT INTO|ALTER TABLE|CREATE (TABLE|DATABASE)|DROP (TABLE|PARTITION)|TRUNCATE)\b", re.S
)
LAMBDA = re.compile(r"\barray\w+\(\w+ ->")
CLOCK = re.compile(r"\b(now|now64|today|yesterday|nowInBlock)\s*\(")
# Identifiers, which no engine takes as parameters: (module, what may be put in).
ALLOWED = {
    ("removal.py", "change"), ("removal.py", "table"),
    ("connection.py", "quote_name(name)"), ("connection.py", "quote_name(table)"),
}  # fmt: skip


def built(tree: ast.Module) -> list[tuple[ast.JoinedStr, str]]:
    """f-strings with SQL inside functions, with the source of each value put in."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
                    if SQL.search(text):
                        found += [
                            (node, ast.unparse(part.value))
                            for part in node.values
                            if isinstance(part, ast.FormattedValue)
                        ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_statements_are_constants_with_bound_parameters(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if ROOT / "clickhouse" not in path.parents:
        assert not [text for text in texts if SQL.search(text)], "SQL lives in clickhouse/ only"
        return
    assert {(path.name, value) for _, value in built(tree)} <= ALLOWED
    for text in texts:
        assert not LAMBDA.search(text), "what a lambda makes of a parameter is made anew for every row"
        if SQL.search(text):
            assert not CLOCK.search(text), "the clock is passed in"
            assert "%s" not in text
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "format":
            in_function = any(
                call in ast.walk(function) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
            )
            assert not in_function, f"line {call.lineno}: a template may be filled at import only"


def test_the_lint_sees_a_statement_that_is_built() -> None:
    tree = ast.parse("def f(tenant):\n    return f\"SELECT 1 FROM events WHERE tenant_id = '{tenant}'\"")
    assert [value for _, value in built(tree)] == ["tenant"]


@pytest.mark.parametrize("path", sorted((ROOT / "clickhouse" / "migrations").glob("*.sql")), ids=lambda path: path.name)
def test_migrations_can_be_run_twice_and_have_no_clock(path: Path) -> None:
    text = re.sub(r"^--.*$", "", path.read_text(), flags=re.MULTILINE)
    assert not CLOCK.search(text)
    assert len(re.findall(r"CREATE TABLE", text)) == len(re.findall(r"CREATE TABLE IF NOT EXISTS", text))
    assert text.count("fsync_after_insert = 1") == text.count("ENGINE =")


@pytest.mark.parametrize("path", sorted((ROOT / "clickhouse" / "detection").glob("*.sql")), ids=lambda path: path.stem)
def test_statements_of_the_detector_ask_no_clock(path: Path) -> None:
    text = path.read_text()
    assert not CLOCK.search(text), "the clock is passed in, or a replay would not be what the service does"
    assert text.startswith("-- ")
