"""The detector's statements: a file of SQL each."""

from __future__ import annotations

from importlib.resources import files


def statement(name: str) -> str:
    """The text of `name`.sql, with the parameters that its first lines explain."""
    return files("clickhouse.detection").joinpath(f"{name}.sql").read_text(encoding="utf-8")
