"""The body of a request: taken off the wire and unpacked, within bounds."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from query_api.http.errors import ApiError, invalid, too_large, unavailable

_GZIP: Final = zlib.MAX_WBITS | 16
_FEED_BYTES: Final = 64 * 1024
# A body of nothing but empty members would cost far more work than its size suggests.
_MAX_MEMBERS: Final = 1_000


class BodyAbandonedError(Exception):
    """The body stopped before its end: there is nobody, or nothing sensible, to answer to."""


class BodyBudget:
    """Bytes that all bodies together may hold in memory."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    @asynccontextmanager
    async def read(self, request: web.BaseRequest, limit: int, seconds: float) -> AsyncIterator[bytes]:
        """The body as sent, at most `limit` bytes, which stays accounted for until the block ends.

        Raises ApiError (400 broken framing, 413 too long, 503 no memory for it now) and BodyAbandonedError (sender
        gone, or not done within `seconds`).
        """
        taken = 0
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(seconds):
                await _ask_for_body(request)
                while chunk := await request.content.readany():
                    if taken + len(chunk) > limit:
                        raise body_too_large(limit)
                    if len(chunk) > self._free:
                        raise unavailable("Too many large bodies are being received; send it again.", 1, "memory")
                    self._free -= len(chunk)
                    taken += len(chunk)
                    chunks.append(chunk)
        except (PayloadEncodingError, web.RequestPayloadError):
            self._free += taken
            raise invalid("The body is not framed as its headers say.") from None
        except OSError:  # a lost connection and a time-out alike
            self._free += taken
            raise BodyAbandonedError from None
        except RuntimeError:
            # What aiohttp raises when asked to wait for more of a connection that is gone.
            self._free += taken
            if request.transport is None:
                raise BodyAbandonedError from None
            raise
        except BaseException:
            self._free += taken
            raise
        body = b"".join(chunks)
        chunks.clear()
        try:
            yield body
        finally:
            self._free += taken


def body_too_large(limit: int) -> ApiError:
    """413 for a body, as sent or as unpacked, beyond `limit` bytes."""
    return too_large(f"A body may have at most {limit} bytes, as sent and as unpacked; send smaller batches.")


def gunzip(packed: bytes, limit: int) -> bytes:
    """Unpacks gzip (RFC 1952, one member or several) to at most `limit` bytes.

    Raises ApiError: 413 beyond the limit (unpacking stops there), 400 if it is cut short or not gzip.
    """
    unpacked = bytearray()
    member = zlib.decompressobj(_GZIP)
    members = 1
    position = 0
    rest = b""
    while rest or position < len(packed):
        if not rest:
            rest = packed[position : position + _FEED_BYTES]
            position += len(rest)
        if member.eof:
            members += 1
            if members > _MAX_MEMBERS:
                raise invalid(f"The gzip body has more than {_MAX_MEMBERS} members.")
            member = zlib.decompressobj(_GZIP)
        try:
            unpacked += member.decompress(rest, limit - len(unpacked) + 1)
        except zlib.error:
            raise invalid("The body is not valid gzip.") from None
        if len(unpacked) > limit:
            raise body_too_large(limit)
        rest = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise invalid("The gzip body is cut short.")
    return bytes(unpacked)


async def _ask_for_body(request: web.BaseRequest) -> None:
    """Sends 100 Continue (RFC 9110 section 10.1.1) only here, so that a refused sender keeps its body to itself."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
