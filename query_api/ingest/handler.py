"""POST /api/v1/events: a batch of events, answered once every valid one is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from aiohttp import web

from query_api.auth.bearer_token import RefusedError, read_bearer
from query_api.auth.verifier import REALM, AuthError
from query_api.http.errors import ApiError, rate_limited
from query_api.http.parameters import no_parameters
from query_api.http.request_context import RequestContext
from query_api.http.responses import json_answer
from query_api.ingest.body import BodyBudget, body_too_large, gunzip
from query_api.ingest.formats import FORMATS, Batch, BatchFormat, decode_batch
from query_api.ingest.signatures import SIGNATURE_HEADER, SignatureError, check_signature, read_signature, sign
from query_api.ingest.sources import Source, SourceTokens
from query_api.metrics import ApiMetrics
from query_api.ports import EventWriter
from query_api.rate_limit import TokenBuckets, Verdict, rate_limit_headers
from query_api.settings import ApiSettings

# Decoding this much takes about a millisecond; more would hold up every other request of the event loop.
_INLINE_BYTES: Final = 32 * 1024
# How many events were rejected: the list in the answer ends after the first thousand reasons.
REJECTED_HEADER: Final = "X-Rejected"
_NOT_CODED: Final = frozenset({"", "identity"})
_GZIP: Final = frozenset({"gzip", "x-gzip"})

_Result = TypeVar("_Result")


class Ingest:
    """The handler. `sources` is None when no token file is configured; `threads` decode large bodies."""

    def __init__(
        self,
        settings: ApiSettings,
        *,
        sources: SourceTokens | None,
        event_writer: EventWriter,
        metrics: ApiMetrics,
        clock: Callable[[], float],
        timer: Callable[[], float],
        threads: Executor,
    ) -> None:
        limits = settings.limits
        self._settings = settings
        self._sources = sources
        self._event_writer = event_writer
        self._metrics = metrics
        self._clock = clock
        self._threads = threads
        self._budget = BodyBudget(limits.body_bytes_in_flight)
        self._rate = limits.source_requests
        self._request_buckets = TokenBuckets(self._rate, timer) if self._rate else None
        self._event_buckets = TokenBuckets(limits.source_events, timer) if limits.source_events else None

    async def __call__(self, context: RequestContext) -> web.Response:
        """Answers with how many events were accepted and why the others were not."""
        request = context.request
        source = self._authenticated(context)
        headers = self._take_request(source)
        no_parameters(request)
        batch_format = _batch_format(request)
        packed = _is_packed(request)
        limits = self._settings.limits
        if (request.content_length or 0) > limits.body_bytes:
            raise body_too_large(limits.body_bytes)
        async with self._budget.read(request, limits.body_bytes, self._settings.body_seconds) as body:
            await self._require_signature(source, request, body)
            batch = await self._decoded(body, packed, batch_format, source)
            if batch.events:
                if self._event_buckets is not None:
                    self._allow(self._event_buckets.take(source.name, len(batch.events)), headers)
                await self._event_writer.write(batch.events)
        # Only now: what was answered 503 or 429 comes again, and would be counted again.
        self._record(context, batch)
        headers |= {REJECTED_HEADER: str(batch.rejected_events)}
        if batch.rejected and not batch.events:
            raise ApiError(
                "VALIDATION_ERROR",
                "No event in the request is valid.",
                details={"rejected": batch.rejected},
                headers=headers,
            )
        return json_answer({"accepted": len(batch.events), "rejected": batch.rejected}, headers=headers)

    def _authenticated(self, context: RequestContext) -> Source:
        if self._sources is None:
            raise ApiError(
                "FORBIDDEN", "Ingest is off: the server was started without --ingest-token-file.", reason="ingest_off"
            )
        try:
            token = read_bearer(context.request.headers.getall("Authorization", []))
        except RefusedError as refused:
            raise AuthError(refused.reason) from None
        source = self._sources.find(token)
        if source is None:
            raise _unauthorized("source_token", "The token is not that of a known source")
        context.notes["source"] = source.name
        return source

    def _take_request(self, source: Source) -> dict[str, str]:
        """Takes one request from the source's share; the headers that tell it what is left."""
        if self._rate is None or self._request_buckets is None:
            return {}
        verdict = self._request_buckets.take(source.name)
        headers = rate_limit_headers("source", self._rate, verdict)
        self._allow(verdict, headers)
        return headers

    def _allow(self, verdict: Verdict, headers: dict[str, str]) -> None:
        if not verdict.allowed:
            self._metrics.rate_limited.labels("source").inc()
            message = "This source sends more than it may; send the same request again later."
            raise rate_limited(message, verdict.more_in, headers)

    async def _require_signature(self, source: Source, request: web.BaseRequest, body: bytes) -> None:
        key = source.signing_key
        if key is None:
            return
        try:
            offered = read_signature(request.headers.getall(SIGNATURE_HEADER, []))
            expected = await self._off_loop(len(body) > _INLINE_BYTES, lambda: sign(key, offered.moment, body))
            check_signature(offered, expected, self._clock())
        except SignatureError as error:
            raise _unauthorized(error.reason, f"The {SIGNATURE_HEADER} header does not prove this body") from None

    async def _decoded(self, body: bytes, packed: bool, batch_format: BatchFormat, source: Source) -> Batch:
        limits = self._settings.limits
        now_ms = int(self._clock() * 1000)

        def decode() -> Batch:
            text = gunzip(body, limits.body_bytes) if packed else body
            return decode_batch(text, batch_format, now_ms, limits.events_per_request, source.may_send)

        return await self._off_loop(packed or len(body) > _INLINE_BYTES, decode)

    async def _off_loop(self, large: bool, work: Callable[[], _Result]) -> _Result:
        if not large:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _record(self, context: RequestContext, batch: Batch) -> None:
        context.notes["accepted"] = len(batch.events)
        context.notes["rejected"] = batch.rejected_events
        for code, count in batch.refused.items():
            self._metrics.rejected(code, count)
        if batch.events:
            self._metrics.events_accepted.inc(len(batch.events))
            self._metrics.last_accepted.set(self._clock())


def _batch_format(request: web.BaseRequest) -> BatchFormat:
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    batch_format = FORMATS.get(media_type)
    if batch_format is None:
        raise ApiError("UNSUPPORTED_MEDIA_TYPE", "Content-Type must be one of: " + ", ".join(FORMATS) + ".")
    return batch_format


def _is_packed(request: web.BaseRequest) -> bool:
    coding = ",".join(request.headers.getall("Content-Encoding", [])).strip().lower()
    if coding in _NOT_CODED:
        return False
    if coding in _GZIP:
        return True
    # RFC 9110 section 12.5.3: a 415 for the coding tells with Accept-Encoding which ones would do.
    raise ApiError(
        "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding must be gzip or none.", headers={"Accept-Encoding": "gzip"}
    )


def _unauthorized(reason: str, message: str) -> ApiError:
    challenge = f'Bearer realm="{REALM}", error="invalid_token", error_description="{message}"'
    return ApiError("UNAUTHORIZED", message + ".", headers={"WWW-Authenticate": challenge}, reason=reason)
