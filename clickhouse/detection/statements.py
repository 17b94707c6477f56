"""The detector's statements: a file of SQL each."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

_PART: Final = re.compile(r"/\*(\w+)\*/")


def statement(name: str) -> str:
    """The text of `name`.sql, with the parameters that its first lines explain.

    Where it says `/*part*/`, the text of part.sql stands: what several statements have in common.
    """
    text = files("clickhouse.detection").joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return _PART.sub(lambda part: statement(part[1]), text)
