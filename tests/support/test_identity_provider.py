"""The identity provider that end-to-end tests trust: its tokens verify, and its events tell what it issued."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jwt
import pytest
from aiohttp import web

from tests.support.identity_provider import IdentityProvider, IdentityProviderError

EVENTS_TOKEN = "token of the event source"


class Receiver:
    """A stand-in for the ingest endpoint: takes batches of events and answers as it is told to.

    `answers` are the statuses of the first POSTs (then 200); every batch is kept, whatever was answered. With `gate`
    cleared, answers are held back.
    """

    def __init__(self, *answers: int) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.authorizations: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.came = threading.Event()
        self.url = ""
        self._answers = list(answers)

    async def post(self, request: web.Request) -> web.Response:
        self.authorizations.add(request.headers.get("Authorization", ""))
        events = (await request.json())["events"]
        self.batches.append(events)
        self.came.set()
        await asyncio.to_thread(self.gate.wait)
        status = self._answers.pop(0) if self._answers else 200
        return web.json_response({"accepted": len(events), "rejected": []}, status=status)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event once, however often it came."""
        return list({event["event_id"]: event for batch in self.batches for event in batch}.values())

    @contextmanager
    def serving(self) -> Iterator[Receiver]:
        loop = asyncio.new_event_loop()
        application = web.Application()
        application.router.add_post("/events", self.post)
        runner = web.AppRunner(application)

        async def start() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/events"

        loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


def claims(provider: IdentityProvider, token: str) -> dict[str, Any]:
    key = jwt.PyJWKClient(provider.jwks_url).get_signing_key_from_jwt(token)
    verified: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["RS256"],
        audience=provider.audience,
        issuer=provider.issuer,
        options={"require": ["iss", "exp", "aud", "sub", "client_id", "iat", "jti", "organization_id", "scope"]},
    )
    return verified


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def by_agent_and_hour(events: list[dict[str, Any]], outcome: str) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for event in events:
        if event["outcome"] == outcome:
            counts.setdefault(event["agent_id"], Counter())[event["issued_at"][:13]] += 1
    return counts


def test_events_tell_what_was_issued_and_refused(provider: IdentityProvider) -> None:
    tenants = {agent.client_id: agent.tenant for agent in provider.agents}
    assert (len(tenants), len(set(tenants.values()))) == (3, 2)
    with Receiver().serving() as receiver:
        provider.send_events_to(receiver.url, EVENTS_TOKEN)
        verified = [claims(provider, token) for token in provider.issue(60)]
        for agent in provider.agents[:2]:
            provider.refuse(agent.client_id)
        provider.refuse("nobody")
        stats = provider.wait_delivered()

    issued = [event for event in receiver.events if event["outcome"] == "success"]
    assert {event["event_id"] for event in issued} == {claim["jti"] for claim in verified}
    by_id = {event["event_id"]: event for event in issued}
    for claim in verified:
        event = by_id[claim["jti"]]
        assert claim["organization_id"] == tenants[claim["client_id"]] == event["tenant_id"]
        assert claim["client_id"] == claim["sub"] == event["agent_id"]
        assert datetime.fromisoformat(event["issued_at"]).timestamp() == claim["iat"]
        assert (event["grant_type"], event["scope"]) == ("client_credentials", claim["scope"])
        assert event["expires_in"] == claim["exp"] - claim["iat"] == 3600
        assert event["source"] == provider.issuer

    assert stats["issued_by_hour"] == by_agent_and_hour(receiver.events, "success")
    assert {agent: sum(days.values()) for agent, days in stats["issued"].items()} == dict(
        zip(tenants, (30, 20, 10), strict=True)
    )
    assert {agent: sum(days.values()) for agent, days in stats["refused"].items()} == {
        agent: sum(hours.values()) for agent, hours in by_agent_and_hour(receiver.events, "failure").items()
    }
    assert (stats["refused_unknown"], stats["delivered"], stats["queued"]) == (1, 62, 0)
    assert (stats["rejected"], stats["dropped"]) == (0, 0)
    assert receiver.authorizations == {f"Bearer {EVENTS_TOKEN}"}


def test_a_failing_receiver_loses_nothing_and_gets_the_same_batch_again(provider: IdentityProvider) -> None:
    agent = provider.agents[0].client_id
    with Receiver(503, 500, 429).serving() as receiver:
        receiver.gate.clear()
        provider.send_events_to(receiver.url, EVENTS_TOKEN)
        provider.token(agent)
        assert receiver.came.wait(30)
        provider.issue(20)  # while the first event is under way
        receiver.gate.set()
        stats = provider.wait_delivered()
    assert [len(batch) for batch in receiver.batches] == [1, 1, 1, 1, 20]
    assert receiver.batches[0] == receiver.batches[1] == receiver.batches[2] == receiver.batches[3]
    assert len(receiver.events) == 21
    assert (stats["delivered"], stats["retries"], stats["posts"]) == (21, 3, 5)


def test_a_batch_refused_for_good_is_dropped_and_said(provider: IdentityProvider) -> None:
    with Receiver(401).serving() as receiver:
        provider.send_events_to(receiver.url, "another token")
        provider.token(provider.agents[0].client_id)
        stats = provider.wait_delivered()
    assert (stats["dropped"], stats["delivered"], stats["retries"]) == (1, 0, 0)
    assert "refused for good: 401" in provider.last_words()


def test_rotation_signs_with_a_new_key_and_keeps_the_old_until_dropped(provider: IdentityProvider) -> None:
    agent = provider.agents[2].client_id
    before = provider.token(agent)
    kids = provider.rotate()
    after = provider.token(agent)
    assert [kid(after), kid(before)] == kids == provider.stats()["kids"]
    assert claims(provider, before)["client_id"] == claims(provider, after)["client_id"] == agent
    assert provider.drop_old_keys() == [kid(after)]
    with pytest.raises(jwt.PyJWKClientError):
        claims(provider, before)
    assert claims(provider, after)["client_id"] == agent


def test_the_lifetime_and_the_receiver_can_be_set_at_the_start() -> None:
    with (
        Receiver().serving() as receiver,
        IdentityProvider(receiver.url, EVENTS_TOKEN, token_ttl=90) as provider,
    ):
        claim = claims(provider, provider.token(provider.agents[1].client_id, scope="agents:read"))
        provider.wait_delivered()
    assert (claim["exp"] - claim["iat"], claim["scope"]) == (90, "agents:read")
    assert [event["expires_in"] for event in receiver.events] == [90]


def test_events_go_to_loopback_only(provider: IdentityProvider) -> None:
    with pytest.raises(IdentityProviderError, match=r"is not on 127\.0\.0\.1"):
        provider.send_events_to("http://192.0.2.1/events", EVENTS_TOKEN)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(IdentityProviderError, match="node is not on the PATH"):
        IdentityProvider().start()
