"""The key set against a real endpoint that hangs, breaks, lies, rotates and withdraws."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from query_api.auth.jwks import (
    ALGORITHMS,
    FetchResult,
    KeySet,
    KeysUnavailableError,
    UnknownKeyError,
    check_algorithms,
    check_jwks_url,
    parse_key_set,
)
from tests.support.hostile_tokens import ABSENT, JwksServer, b64, private_jwk, public_jwk, rsa_key

RSA = rsa_key()
OTHER_RSA = rsa_key()
OLD = {"keys": [public_jwk(RSA, kid="old")]}
NEW = {"keys": [public_jwk(OTHER_RSA, kid="new")]}
BOTH = {"keys": OLD["keys"] + NEW["keys"]}

TTL, GAP, STALE = 300, 10, 86_400


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fixture:
    """A key set, the server it asks, the clock it reads and the results it reported."""

    def __init__(self, server: JwksServer, session: aiohttp.ClientSession, **options: Any) -> None:
        self.server = server
        self.clock = Clock()
        self.results: list[str] = []
        self._reported = asyncio.Semaphore(0)
        defaults: dict[str, Any] = {"ttl": TTL, "min_gap": GAP, "stale_limit": STALE, "timeout": 30}
        defaults |= {"algorithms": ["RS256"], "clock": self.clock, "on_fetch": self._report}
        self.keys = KeySet(session, server.url, **(defaults | options))

    async def kid(self, kid: str | None, alg: str = "RS256") -> str | None:
        return (await self.keys.key(kid, alg)).kid

    def _report(self, result: str) -> None:
        self.results.append(result)
        self._reported.release()

    async def fetches(self, number: int) -> None:
        """Waits for the ends of `number` fetches not waited for yet."""
        for _ in range(number):
            await self._reported.acquire()


@asynccontextmanager
async def key_set(document: object = OLD, **options: Any) -> AsyncIterator[Fixture]:
    async with JwksServer(document) as server, aiohttp.ClientSession() as session:
        fixture = Fixture(server, session, **options)
        try:
            yield fixture
        finally:
            server.open.set()
            await fixture.keys.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    # The limit turns a wait that never ends into a failure; no test depends on its length.
    asyncio.run(asyncio.wait_for(test, 60))


# Who waits, and who does not


def test_many_first_callers_share_one_fetch() -> None:
    async def test() -> None:
        async with key_set() as f:
            assert await asyncio.gather(*(f.kid("old") for _ in range(50))) == ["old"] * 50
            assert f.server.hits == 1

    run(test())


def test_valid_requests_do_not_wait_while_unknown_kids_hang() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            await f.server.arrival()
            f.clock.now += GAP
            f.server.open.clear()
            strangers = [asyncio.create_task(f.kid(f"unknown-{n}")) for n in range(50)]
            await f.server.arrival()
            # The endpoint hangs and every stranger waits for it: nothing but a held key can answer this.
            assert [await f.kid("old") for _ in range(50)] == ["old"] * 50
            assert not any(stranger.done() for stranger in strangers)
            f.server.open.set()
            outcomes = await asyncio.gather(*strangers, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {UnknownKeyError}
            assert f.server.hits == 2

    run(test())


def test_unknown_kids_within_the_gap_are_refused_without_a_fetch() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            for n in range(200):
                with pytest.raises(UnknownKeyError):
                    await f.kid(f"unknown-{n}")
            assert f.server.hits == 1

    run(test())


def test_known_kid_with_another_algorithm_causes_no_fetch() -> None:
    async def test() -> None:
        document = {"keys": [public_jwk(RSA, kid="rsa"), public_jwk(ec.generate_private_key(ec.SECP256R1()), kid="ec")]}
        async with key_set(document, algorithms=["RS256", "ES256"]) as f:
            assert await f.kid("ec", "ES256") == "ec"
            f.clock.now += GAP
            with pytest.raises(UnknownKeyError):
                await f.kid("ec", "RS256")
            assert f.server.hits == 1

    run(test())


def test_cancelled_caller_does_not_cancel_the_fetch_of_others() -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.open.clear()
            first, second = asyncio.create_task(f.kid("old")), asyncio.create_task(f.kid("old"))
            await f.server.arrival()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            f.server.open.set()
            assert await second == "old"
            assert f.server.hits == 1

    run(test())


# Age: ttl, refresh in the background, stale-if-error


def test_fresh_keys_are_not_fetched_again() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.clock.now += TTL - 1
            await f.kid("old")
            await asyncio.sleep(0)
            assert f.server.hits == 1

    run(test())


def test_aged_keys_are_served_while_the_refresh_hangs() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            await f.server.arrival()
            f.clock.now += TTL
            f.server.open.clear()
            assert [await f.kid("old") for _ in range(20)] == ["old"] * 20
            await f.server.arrival()
            assert await f.kid("old") == "old"
            assert f.server.hits == 2
            assert f.results == ["ok"]

    run(test())


def test_age_counts_from_the_start_of_the_fetch() -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.open.clear()
            slow = asyncio.create_task(f.kid("old"))
            await f.server.arrival()
            f.clock.now += TTL
            f.server.open.set()
            await slow
            await f.kid("old")
            await f.fetches(2)
            assert f.server.hits == 2

    run(test())


def test_withdrawn_key_is_refused_after_the_refresh() -> None:
    async def test() -> None:
        async with key_set(BOTH) as f:
            assert await f.kid("old") == "old"
            f.server.publish(NEW)
            f.clock.now += TTL
            await f.kid("old")
            await f.fetches(2)
            with pytest.raises(UnknownKeyError):
                await f.kid("old")
            assert await f.kid("new") == "new"

    run(test())


def test_withdrawing_every_key_is_obeyed() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.server.publish({"keys": []})
            f.clock.now += TTL
            await f.kid("old")
            await f.fetches(2)
            with pytest.raises(UnknownKeyError):
                await f.kid("old")

    run(test())


def test_withdrawn_key_is_dropped_without_any_request() -> None:
    async def test() -> None:
        async with key_set(ttl=0.001, min_gap=0) as f:
            await f.keys.start()
            await f.fetches(1)
            f.server.publish(NEW)
            await f.fetches(len(f.results) - 1 + 2)
            assert [key.kid for key in f.keys._keys] == ["new"]

    run(test())


def test_start_does_not_wait_for_the_endpoint() -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.open.clear()
            await f.keys.start()
            await f.server.arrival()
            assert f.results == []
            f.server.open.set()
            assert await f.kid("old") == "old"
            assert f.server.hits == 1

    run(test())


def test_close_ends_a_hanging_fetch_and_causes_no_other() -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.open.clear()
            await f.keys.start()
            await f.server.arrival()
            await f.keys.close()
            f.clock.now += GAP
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")
            assert f.server.hits == 1

    run(test())


def test_unavailable_when_closed_before_any_fetch() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.keys.close()
            with pytest.raises(KeysUnavailableError) as unavailable:
                await f.kid("old")
            assert unavailable.value.retry_after == 1

    run(test())


def test_rotation_new_kid_is_usable_after_the_gap_at_the_latest() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.server.publish(BOTH)
            with pytest.raises(UnknownKeyError):
                await f.kid("new")
            f.clock.now += GAP
            assert await f.kid("new") == "new"
            assert await f.kid("old") == "old"
            assert f.server.hits == 2

    run(test())


def test_clock_set_back_causes_a_refresh_and_no_lock_out() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.clock.now -= 5000
            assert await f.kid("old") == "old"
            assert f.server.hits == 2

    run(test())


# Failures


def status(code: int, **headers: str) -> Callable[[], web.StreamResponse]:
    return lambda: web.Response(status=code, headers=headers, body=json.dumps(OLD))


def body(data: bytes, **headers: str) -> Callable[[], web.StreamResponse]:
    return lambda: web.Response(body=data, headers=headers)


GOOD = json.dumps(OLD).encode()
FAILURES: dict[str, tuple[FetchResult, Callable[[], web.StreamResponse]]] = {
    "500": (FetchResult.STATUS, status(500)),
    "404": (FetchResult.STATUS, status(404)),
    "201": (FetchResult.STATUS, status(201)),
    "redirect": (FetchResult.STATUS, status(302, Location="/elsewhere")),
    "permanent-redirect": (FetchResult.STATUS, status(308, Location="/elsewhere")),
    "html": (FetchResult.INVALID, body(b"<!doctype html><title>Log in</title>", **{"Content-Type": "text/html"})),
    "empty": (FetchResult.INVALID, body(b"")),
    "array": (FetchResult.INVALID, body(b"[]")),
    "null": (FetchResult.INVALID, body(b"null")),
    "no-keys": (FetchResult.INVALID, body(b"{}")),
    "keys-object": (FetchResult.INVALID, body(b'{"keys":{}}')),
    "nan": (FetchResult.INVALID, body(GOOD[:-1] + b',"x":NaN}')),
    "overflow": (FetchResult.INVALID, body(GOOD[:-1] + b',"x":1e999}')),
    "deep": (FetchResult.INVALID, body(b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "keys-twice": (FetchResult.INVALID, body(GOOD[:-1] + b',"keys":[]}')),
    "utf-16": (FetchResult.INVALID, body(GOOD.decode().encode("utf-16"))),
    "cut-short": (FetchResult.INVALID, body(GOOD[:-1])),
    "101-keys": (FetchResult.INVALID, body(json.dumps({"keys": OLD["keys"] * 101}).encode())),
    "too-large": (FetchResult.TOO_LARGE, body(GOOD + b" " * 256 * 1024)),
    "not-gzip": (FetchResult.UNREACHABLE, body(GOOD, **{"Content-Encoding": "gzip"})),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_keeps_the_held_keys_and_is_reported(name: str) -> None:
    async def test() -> None:
        result, respond = FAILURES[name]
        async with key_set() as f:
            await f.kid("old")
            f.server.respond = respond
            f.clock.now += TTL
            assert await f.kid("old") == "old"
            await f.fetches(2)
            assert f.results == ["ok", result]
            f.clock.now += STALE - TTL - 1
            assert await f.kid("old") == "old"
            assert f.server.elsewhere_hits == 0

    run(test())


@pytest.mark.parametrize("name", FAILURES)
def test_failure_without_held_keys_is_unavailable_and_has_the_gap(name: str) -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.respond = FAILURES[name][1]
            for _ in range(20):
                with pytest.raises(KeysUnavailableError) as unavailable:
                    await f.kid("old")
                assert unavailable.value.retry_after == GAP
            assert f.server.hits == 1
            f.clock.now += 7.5
            with pytest.raises(KeysUnavailableError) as unavailable:
                await f.kid("old")
            assert unavailable.value.retry_after == 3
            f.clock.now += 2.5
            f.server.publish(OLD)
            assert await f.kid("old") == "old"

    run(test())


def test_fifty_unknown_kids_with_a_failing_endpoint_cause_one_fetch() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.server.respond = status(500)
            f.clock.now += GAP
            kids = (f.kid(f"unknown-{n}") for n in range(50))
            outcomes = await asyncio.gather(*kids, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {UnknownKeyError}
            assert f.server.hits == 2
            assert await f.kid("old") == "old"

    run(test())


def test_keys_are_not_used_beyond_the_stale_limit() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.kid("old")
            f.server.respond = status(500)
            f.clock.now += STALE
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")

    run(test())


def test_hanging_endpoint_is_given_up_after_the_timeout() -> None:
    async def test() -> None:
        async with key_set(timeout=0.05) as f:
            f.server.open.clear()
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")
            await f.fetches(1)
            assert f.results == [FetchResult.UNREACHABLE]

    run(test())


def test_endpoint_that_stops_in_the_middle_is_given_up_after_the_timeout() -> None:
    async def test() -> None:
        async with key_set(timeout=0.05) as f:
            f.server.respond = lambda: _Dripping()
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")
            await f.fetches(1)
            assert f.results == [FetchResult.UNREACHABLE]

    run(test())


class _Dripping(web.StreamResponse):
    """Promises more than it sends."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        self.content_length = 1000
        writer = await super().prepare(request)
        await self.write(b'{"keys":')
        await asyncio.Event().wait()
        return writer


def test_closed_port_is_unreachable() -> None:
    async def test() -> None:
        async with JwksServer(OLD) as server:
            pass
        async with aiohttp.ClientSession() as session:
            f = Fixture(server, session)
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")
            assert f.results == [FetchResult.UNREACHABLE]

    run(test())


def test_closed_session_is_unreachable_and_no_crash() -> None:
    async def test() -> None:
        async with key_set() as f:
            await f.keys._session.close()
            with pytest.raises(KeysUnavailableError):
                await f.kid("old")
            assert f.results == [FetchResult.UNREACHABLE]

    run(test())


def test_gzip_bomb_is_cut_off_without_being_unpacked() -> None:
    bomb = gzip.compress(b" " * 30_000_000)

    async def test() -> None:
        async with key_set() as f:
            f.server.respond = body(bomb, **{"Content-Encoding": "gzip"})
            tracemalloc.start()
            try:
                with pytest.raises(KeysUnavailableError):
                    await f.kid("old")
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert f.results == [FetchResult.TOO_LARGE]
            assert peak < 5_000_000

    run(test())


def test_gzip_within_the_cap_is_read() -> None:
    async def test() -> None:
        async with key_set() as f:
            f.server.respond = body(gzip.compress(GOOD), **{"Content-Encoding": "gzip"})
            assert await f.kid("old") == "old"

    run(test())


def test_log_names_the_url_without_its_query_and_no_key_material(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        document = {"keys": [private_jwk(RSA, kid="leaked"), *OLD["keys"]]}
        async with JwksServer(document) as server, aiohttp.ClientSession() as session:
            server.url += "?key=hush"
            f = Fixture(server, session)
            await f.kid("old")
            await f.fetches(1)
            for respond in (server.respond, status(500)):
                server.respond = respond
                f.clock.now += TTL
                await f.kid("old")
                await f.fetches(1)

    with caplog.at_level(logging.DEBUG, "query_api"):
        run(test())
    assert caplog.text.count("key 0: it is a private or shared key") == 1
    assert "status 500" in caplog.text
    assert "serving the keys held" in caplog.text
    assert "hush" not in caplog.text
    assert private_jwk(RSA)["d"][:20] not in caplog.text


# Which keys may verify what


def test_key_without_kid_is_used_only_when_it_is_alone() -> None:
    async def test() -> None:
        async with key_set({"keys": [public_jwk(RSA)]}) as f:
            assert await f.kid(None) is None
            with pytest.raises(UnknownKeyError):
                await f.kid("old")
        async with key_set({"keys": [*OLD["keys"], public_jwk(RSA, kid="enc", use="enc")]}) as f:
            assert await f.kid(None) == "old"
            with pytest.raises(UnknownKeyError):
                await f.kid(None, "PS256")
        async with key_set(BOTH) as f:
            await f.kid("old")
            f.clock.now += GAP
            with pytest.raises(UnknownKeyError):
                await f.kid(None)
            assert f.server.hits == 1

    run(test())


def usable(*jwks: object, algorithms: frozenset[str] = ALGORITHMS) -> list[tuple[str | None, set[str]]]:
    keys, refused = parse_key_set(json.dumps({"keys": jwks}).encode(), algorithms)
    assert len(refused) + len(keys) == len(jwks)
    return [(key.kid, set(key.algorithms)) for key in keys]


RSA_ALL = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


def test_key_is_bound_to_the_algorithms_of_its_type() -> None:
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    jwks = [public_jwk(ec.generate_private_key(curve), kid=name) for name, curve in curves.items()]
    assert usable(*jwks) == [("P-256", {"ES256"}), ("P-384", {"ES384"}), ("P-521", {"ES512"})]
    assert usable(public_jwk(ed25519.Ed25519PrivateKey.generate())) == [(None, {"EdDSA"})]
    assert usable(public_jwk(RSA)) == [(None, RSA_ALL)]
    assert usable(public_jwk(RSA, alg="PS384")) == [(None, {"PS384"})]
    assert usable(public_jwk(RSA), algorithms=frozenset({"RS256", "ES256"})) == [(None, {"RS256"})]
    assert usable(public_jwk(RSA, alg="RS512"), algorithms=frozenset({"RS256"})) == []


REFUSED_KEYS: dict[str, object] = {
    "not an object": "key",
    "null": None,
    "no kty": public_jwk(RSA, kty=ABSENT),
    "kty list": public_jwk(RSA, kty=["RSA"]),
    "kty lower case": public_jwk(RSA, kty="rsa"),
    "oct": {"kty": "oct", "k": b64(b"k" * 32)},
    "oct named RS256": {"kty": "oct", "k": b64(b"k" * 32), "alg": "RS256"},
    "rsa with k": public_jwk(RSA, k=b64(b"k" * 32)),
    "private": private_jwk(RSA),
    "private d only": public_jwk(RSA, d="AQAB"),
    "encryption": public_jwk(RSA, use="enc"),
    "use null": public_jwk(RSA, use=None),
    "use list": public_jwk(RSA, use=["sig"]),
    "key_ops sign": public_jwk(RSA, key_ops=["sign"]),
    "key_ops empty": public_jwk(RSA, key_ops=[]),
    "key_ops string": public_jwk(RSA, key_ops="verify"),
    "alg of another type": public_jwk(RSA, alg="ES256"),
    "alg symmetric": public_jwk(RSA, alg="HS256"),
    "alg none": public_jwk(RSA, alg="none"),
    "alg encryption": public_jwk(RSA, alg="RSA-OAEP"),
    "alg null": public_jwk(RSA, alg=None),
    "alg list": public_jwk(RSA, alg=["RS256"]),
    "kid number": public_jwk(RSA, kid=1),
    "kid empty": public_jwk(RSA, kid=""),
    "1024 bits": public_jwk(rsa_key(1024)),
    "many bits": public_jwk(RSA, n=b64(b"\xff" * 1025)),
    "exponent 1": public_jwk(RSA, e=b64(b"\x01")),
    "no modulus": public_jwk(RSA, n=ABSENT),
    "modulus number": public_jwk(RSA, n=12345),
    "modulus not base64": public_jwk(RSA, n="ключ"),
    "secp256k1": {**public_jwk(ec.generate_private_key(ec.SECP256R1())), "crv": "secp256k1"},
    "curve of another size": {**public_jwk(ec.generate_private_key(ec.SECP256R1())), "crv": "P-384"},
    "curve missing": public_jwk(ec.generate_private_key(ec.SECP256R1()), crv=ABSENT),
    "curve list": public_jwk(ec.generate_private_key(ec.SECP256R1()), crv=["P-256"]),
    "point off the curve": public_jwk(ec.generate_private_key(ec.SECP256R1()), y=b64(b"\x01" * 32)),
    "x25519": {"kty": "OKP", "crv": "X25519", "x": b64(bytes(range(32)))},
    "ed25519 short": public_jwk(ed25519.Ed25519PrivateKey.generate(), x=b64(b"\x01" * 31)),
}


@pytest.mark.parametrize("name", REFUSED_KEYS)
def test_unfit_key_is_left_out_and_spoils_no_other(name: str) -> None:
    assert usable(REFUSED_KEYS[name], public_jwk(OTHER_RSA, kid="good")) == [("good", RSA_ALL)]


def test_key_ops_with_verify_is_accepted() -> None:
    assert usable(public_jwk(RSA, use=ABSENT, key_ops=["verify"])) == [(None, RSA_ALL)]


def test_kid_given_twice_names_no_key() -> None:
    first, second, good = public_jwk(RSA, kid="twin"), public_jwk(OTHER_RSA, kid="twin"), public_jwk(RSA, kid="good")
    assert usable(first, second, good) == [("good", RSA_ALL)]
    assert usable(first, first) == []
    # A private key beside its public half is known to everybody.
    assert usable(first, private_jwk(RSA, kid="twin")) == []


# Start-up checks


@pytest.mark.parametrize(
    "url",
    [
        "https://idp.example/jwks",
        "https://idp.example:8443/jwks?v=a@b",
        "http://127.0.0.1:1/jwks",
        "http://127.8.9.1/jwks",
        "http://localhost:3000/jwks",
        "http://[::1]:3000/jwks",
    ],
)
def test_good_jwks_url_is_accepted(url: str) -> None:
    assert str(check_jwks_url(url)) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "idp.example/jwks",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://idp.example/jwks",
        "data:application/json,{}",
        "https://",
        "https:///jwks",
        "https://idp.example:0/jwks",
        "https://idp.example:99999/jwks",
        "https://idp.example/jwks#keys",
        "https://idp.example/jwks#",
        "https://user:hush@idp.example/jwks",
        "https://user@idp.example/jwks",
        "https://:@idp.example/jwks",
        "https://idp.example/ jwks",
        "https://idp.example/jwks\n",
        "https://idp.example\\@evil.example/jwks",
        "http://idp.example/jwks",
        "http://127.0.0.1.evil.example/jwks",
        "http://localhost.evil.example/jwks",
        "http://0.0.0.0/jwks",
        "http://10.0.0.1/jwks",
        "http://[::ffff:10.0.0.1]/jwks",
        "http://[::]/jwks",
    ],
)
def test_bad_jwks_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match=r"--jwks-url .*(give|leave|use|such as)") as refused:
        check_jwks_url(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["none", "None", "HS256", "hs512", "RS1", "ES256K", "RSA-OAEP", "", "rs256", "Ed25519"]
)
def test_other_algorithms_are_refused_with_the_setting_named(name: str) -> None:
    with pytest.raises(ValueError, match="--jwt-algorithms"):
        check_algorithms(["RS256", name])


def test_no_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="--jwt-algorithms"):
        check_algorithms([])


def test_every_documented_algorithm_is_accepted() -> None:
    names = [f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)]
    assert check_algorithms([*names, "EdDSA"]) == ALGORITHMS
