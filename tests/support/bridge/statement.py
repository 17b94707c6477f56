"""What kind of statement a request body holds, read from its words without understanding its SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.support.bridge.errors import NOT_IMPLEMENTED, SYNTAX_ERROR, refusal

_TOKEN: Final = re.compile(
    rb"(?P<blank>\s+|--[^\n]*|/\*.*?\*/)"
    rb"|(?P<quoted>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`(?:[^`\\]|\\.)*`)"
    rb"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    rb"|(?P<sign>.)",
    re.DOTALL,
)
_ROWS: Final = frozenset({"SELECT", "WITH", "SHOW", "DESC", "DESCRIBE", "EXISTS", "EXPLAIN", "CHECK"})


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `data` is what follows `INSERT ... FORMAT name`, `sql` everything before that `FORMAT`."""

    sql: bytes
    verb: str  # first word, upper case
    table: str = ""  # an insert's target as written, without quotes
    format: str = ""  # of the answer, or of `data`
    data: bytes | None = None
    infile_at: int = 0  # where `FROM INFILE` belongs in `sql` when there is data

    @property
    def returns_rows(self) -> bool:
        """Whether an answer has a format at all; control statements answer with an empty body."""
        return self.verb in _ROWS

    @property
    def is_insert(self) -> bool:
        """Whether rows are written, in whatever way they come."""
        return self.verb == "INSERT"

    @property
    def changes_connection(self) -> bool:
        """Whether something of it would stay behind on the connection and leak into the next request."""
        return self.verb in {"SET", "USE"} or b"TEMPORARY" in self.sql[:200].upper()


def parse_statement(text: bytes) -> Statement:
    """Reads one statement; raises EngineError (62) for none or several, as a server does over HTTP."""
    tokens = _top_level(text)
    verb = next((token.word for token in tokens if token.word), "")
    if not verb:
        raise refusal(SYNTAX_ERROR, "Empty query.")
    return _insert(text, tokens) if verb == "INSERT" else _other(text, verb, tokens)


@dataclass(frozen=True, slots=True)
class _Token:
    raw: bytes
    start: int
    end: int
    word: str  # upper case; empty for quoted text and signs


def _top_level(text: bytes) -> Iterator[_Token]:
    """Tokens outside of brackets, lazily: the data of an insert must not be read as SQL."""
    depth = 0
    for match in _TOKEN.finditer(text):
        raw = match[0]
        if match["sign"] and raw in b"([{":
            depth += 1
        elif match["sign"] and raw in b")]}":
            depth -= 1
        elif not match["blank"] and depth <= 0:
            yield _Token(raw, match.start(), match.end(), raw.decode().upper() if match["word"] else "")


def _insert(text: bytes, tokens: Iterator[_Token]) -> Statement:
    target: list[bytes] = []
    naming = True
    settings_at = 0
    for token in tokens:
        if token.word in {"VALUES", "SELECT", "WITH"}:
            return Statement(text, "INSERT", table=_unquoted(target))
        if token.word == "SETTINGS":
            settings_at = token.start
        if token.word == "FORMAT":
            name = next(tokens, None)
            if name is None:
                break
            data = text[name.end :]
            blank = re.match(rb"[ \t\f]*\r?\n?", data)
            return Statement(
                text[: token.start],
                "INSERT",
                table=_unquoted(target),
                format=name.raw.decode(),
                data=data[blank.end() if blank else 0 :],
                infile_at=settings_at or token.start,
            )
        naming = naming and token.word not in {"SETTINGS", "FROM"}
        if naming and token.word not in {"INTO", "TABLE"}:
            target.append(token.raw)
    raise refusal(NOT_IMPLEMENTED, "The bridge knows INSERT with FORMAT, VALUES or SELECT only.")


def _unquoted(target: list[bytes]) -> str:
    return b"".join(target).replace(b"`", b"").replace(b'"', b"").decode(errors="replace")


def _other(text: bytes, verb: str, tokens: Iterator[_Token]) -> Statement:
    answer_format = ""
    before = ""
    ended = False
    for token in tokens:
        if ended and token.raw != b";":
            raise refusal(SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed).")
        ended = ended or token.raw == b";"
        if before == "FORMAT" and token.word:
            answer_format = token.raw.decode()
        before = token.word
    return Statement(text, verb, format=answer_format)
