"""The tenant: the one value that every question is scoped to."""

from __future__ import annotations

import re
from typing import Final

# `fullmatch`, never `$`: `$` also matches before a trailing newline, and "org-1\n" would then be a second
# spelling of tenant "org-1".
_TENANT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class TenantId(str):
    """A tenant id that has passed its rule: 1-128 of ``[A-Za-z0-9._:-]``, starting with a letter or digit.

    A type of its own, so that a query function cannot be called with an unchecked string: forgetting the check
    would hand one tenant's numbers to another.
    """

    __slots__ = ()

    def __new__(cls, value: object) -> TenantId:
        """Raises ValueError if `value` is no string or breaks the rule (its text is not repeated)."""
        if not isinstance(value, str) or _TENANT_ID.fullmatch(value) is None:
            raise ValueError(
                "a tenant id is 1 to 128 characters of A-Z a-z 0-9 . _ : - and starts with a letter or digit"
            )
        return super().__new__(cls, value)


def is_tenant_id(value: str) -> bool:
    """Whether `value` obeys the rule of `TenantId`; for the write path, which checks thousands a second."""
    return _TENANT_ID.fullmatch(value) is not None
