"""The trusted event sources: the file of their bearer tokens, re-read when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clickhouse.tenant import TenantId
from query_api.file_watch import FileWatch

logger = logging.getLogger(__name__)

MIN_SECRET_LENGTH: Final = 16
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1, b64token
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SourceTokensError(ValueError):
    """A token file that cannot be used. The message names the file and the line, never a token."""


@dataclass(frozen=True, slots=True)
class Source:
    """One trusted sender. Without `tenants` and `prefixes` it may send events of every tenant."""

    name: str
    digest: bytes = field(repr=False)
    tenants: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    signing_key: bytes | None = field(default=None, repr=False)

    def may_send(self, tenant_id: str) -> bool:
        """Whether this source may send events of `tenant_id`."""
        if not self.tenants and not self.prefixes:
            return True
        return tenant_id in self.tenants or tenant_id.startswith(self.prefixes)


class SourceTokens:
    """The sources of a token file. Each line: a token, then any of

    `name=` (for the log), `tenants=a,b` and `prefix=a-,b-` (whose events it may send), `hmac=` (the secret that its
    requests must be signed with). Empty lines and lines that start with # are skipped.

    `read_at` (Unix seconds) is when what is in use was read; `reload_worked` tells whether the last attempt since did.
    `clock` gives Unix seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Reads the file. Raises SourceTokensError."""
        self._clock = clock
        self._path = path
        self._watch = FileWatch(path)
        self._sources = self._read()
        self.reload_worked, self.read_at = True, clock()

    def find(self, token: str) -> Source | None:
        """The source with this token. Takes the same time whichever it is, and whether there is one."""
        self.refresh()
        digest = _digest(token.encode("utf-8", "surrogateescape"))
        found = None
        for source in self._sources:
            if hmac.compare_digest(source.digest, digest):
                found = source
        return found

    def refresh(self) -> None:
        """Reads the file again if it has changed."""
        if not self._watch.changed():
            return
        try:
            sources = self._read()
        except SourceTokensError as error:
            self.reload_worked = False
            # Sources that were trusted a second ago are better than none: a refused sender may drop its events.
            logger.error("the source tokens stay as they were: %s", error)  # noqa: TRY400 - the message says it all
            return
        self._sources = sources
        self.reload_worked, self.read_at = True, self._clock()
        logger.info("source tokens read again", extra={"fields": {"sources": len(sources)}})

    def _read(self) -> Sequence[Source]:
        try:
            mode = self._path.stat().st_mode
            lines = self._path.read_text("utf-8").splitlines()
        except OSError as error:
            raise SourceTokensError(
                f"--ingest-token-file {self._path} cannot be read ({error.strerror}); give a readable file"
            ) from None
        except UnicodeDecodeError:
            raise SourceTokensError(f"--ingest-token-file {self._path} is not a text file in UTF-8") from None
        if mode & stat.S_IROTH:
            logger.warning("the token file %s can be read by every user; set its mode to 0600", self._path)
        sources = [
            self._source(number, line.split())
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not sources:
            raise SourceTokensError(f"--ingest-token-file {self._path} has no token; put one on a line of its own")
        for what in ("digest", "name"):
            if len({getattr(source, what) for source in sources}) < len(sources):
                raise SourceTokensError(
                    f"--ingest-token-file {self._path} has the same {'name' if what == 'name' else 'token'} twice"
                )
        return sources

    def _source(self, number: int, words: list[str]) -> Source:
        token, *options = words
        if _TOKEN.fullmatch(token) is None:
            raise self._error(number, "a token is made of A-Z a-z 0-9 . _ ~ + / - and = at its end")
        if len(token) < MIN_SECRET_LENGTH:
            # Not refused: the provider's side chooses it. But it can be guessed.
            logger.warning(
                "--ingest-token-file %s, line %d: the token is shorter than %d characters and can be guessed",
                self._path,
                number,
                MIN_SECRET_LENGTH,
            )
        values: dict[str, str] = {}
        for option in options:
            key, _, value = option.partition("=")
            if key not in ("name", "tenants", "prefix", "hmac") or not value or key in values:
                raise self._error(number, "after the token come name=, tenants=, prefix= or hmac=, each at most once")
            values[key] = value
        name = values.get("name", f"line-{number}")
        if _NAME.fullmatch(name) is None:
            raise self._error(number, "a name is 1 to 64 characters of A-Z a-z 0-9 . _ -")
        secret = values.get("hmac")
        if secret is not None and len(secret) < MIN_SECRET_LENGTH:
            raise self._error(number, f"the secret in hmac= has fewer than {MIN_SECRET_LENGTH} characters")
        return Source(
            name,
            _digest(token.encode("ascii")),
            frozenset(self._tenant_ids(number, values.get("tenants"))),
            tuple(self._tenant_ids(number, values.get("prefix"))),
            None if secret is None else secret.encode("utf-8"),
        )

    def _tenant_ids(self, number: int, value: str | None) -> list[str]:
        if value is None:
            return []
        try:
            return [TenantId(tenant) for tenant in value.split(",")]
        except ValueError as error:
            raise self._error(number, str(error)) from None

    def _error(self, number: int, message: str) -> SourceTokensError:
        return SourceTokensError(f"--ingest-token-file {self._path}, line {number}: {message}")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
