"""What can go wrong with the store, typed by how one recovers."""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything below."""


class StoreUnavailableError(StoreError):
    """The store cannot answer now (down, slow, full disk); the same call may work after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreSetupError(StoreError):
    """The store cannot be opened as configured; a person has to change something. The message says what."""


class StoreTooNewError(StoreSetupError):
    """The store was written by a newer program; an older one could miscount it."""


class StoreInUseError(StoreSetupError):
    """Another process has the embedded store open; chDB allows one process a path."""
