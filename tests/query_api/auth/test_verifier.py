"""The verifier by itself: settings, answers, rare tokens, arbitrary bytes. The attacks are in tests/test_hostile.py."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from clickhouse.tenant import TenantId
from query_api.auth.bearer_token import MAX_JSON_DEPTH, parse_json_object
from query_api.auth.jwks import KeySet
from query_api.auth.token_policy import TokenPolicy
from query_api.auth.verifier import AuthError, Principal, Reason, Verifier
from tests.support.hostile_tokens import (
    ABSENT,
    Answer,
    Attack,
    Issuer,
    JwksServer,
    b64,
    bearer,
    complaints,
    public_jwk,
    send,
    to_json,
)

NOW = 1_800_000_000.0
ISSUER = Issuer()


class Service:
    """One analytics call behind the verifier, its issuer's endpoint, and a switch to stop that."""

    def __init__(self, verifier: Verifier, jwks: JwksServer, keys: KeySet) -> None:
        self.verifier = verifier
        self.jwks = jwks
        self.keys = keys
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        try:
            principal = await self.verifier.verify(request.headers.getall("Authorization", []))
        except AuthError as error:
            body = {"code": error.code, "message": error.message}
            return web.json_response(body, status=error.status, headers=error.headers)
        return web.json_response({"tenantId": principal.tenant})

    async def get(self, attack: Attack) -> Answer:
        return await send("127.0.0.1", self.port, "/", attack)


@asynccontextmanager
async def serving(issuer: Issuer = ISSUER, **changes: Any) -> AsyncIterator[Service]:
    """A Service for the tokens of `issuer`; `changes` are of the TokenPolicy, or `jwks` for another document."""
    document = changes.pop("jwks", issuer.jwks())
    async with JwksServer(document) as jwks, aiohttp.ClientSession() as session:
        keys = KeySet(session, jwks.url, algorithms=changes.get("algorithms", ["RS256"]))
        policy: dict[str, Any] = {"issuers": (issuer.url,), "audiences": frozenset({issuer.audience})}
        if changes.pop("no_issuer_check", False):
            policy["issuers"] = None
        policy |= {"jwks_urls": (jwks.url,), "required_scope": issuer.scope, **changes}
        of_issuers = keys if policy["issuers"] is None else dict.fromkeys(policy["issuers"], keys)
        verifier = Verifier(TokenPolicy(**policy), of_issuers, lambda: NOW)
        service = Service(verifier, jwks, keys)
        app = web.Application()
        app.router.add_route("*", "/", service.answer)
        runner = web.AppRunner(app, max_field_size=64 * 1024, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.port = runner.addresses[0][1]
        try:
            yield service
        finally:
            await keys.close()
            await runner.cleanup()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def service(loop: asyncio.Runner) -> Iterator[Service]:
    context = serving()
    service = loop.run(context.__aenter__())
    yield service
    loop.run(context.__aexit__(None, None, None))


# The answers


def only(*headers: str, issuer: Issuer = ISSUER, **changes: Any) -> AuthError | Principal:
    """What a fresh verifier with `changes` makes of these Authorization values."""

    async def ask() -> AuthError | Principal:
        async with serving(issuer, **changes) as service:
            try:
                return await service.verifier.verify(headers)
            except AuthError as error:
                return error

    return asyncio.run(ask())


def refusal(*headers: str, **changes: Any) -> AuthError:
    outcome = only(*headers, **changes)
    assert isinstance(outcome, AuthError)
    return outcome


def token(header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    return "Bearer " + ISSUER.token(NOW, header, **claims)


def test_principal_carries_what_the_token_says() -> None:
    principal = only(token(exp=NOW + 60.75, scope="analytics:read x"))
    assert principal == Principal(TenantId("org-1"), "agent-1", frozenset({"analytics:read", "x"}), int(NOW) + 60)


def test_tenant_comes_from_the_token() -> None:
    first, second = only(token()), only(token(organization_id="org-2"))
    assert isinstance(first, Principal)
    assert isinstance(second, Principal)
    assert (first.tenant, second.tenant) == ("org-1", "org-2")


def test_tenant_claim_is_a_setting() -> None:
    claims: dict[str, Any] = {"urn:tenant": "org-9"}
    principal = only(token(**claims), tenant_claim="urn:tenant")
    assert isinstance(principal, Principal)
    assert principal.tenant == "org-9"


def test_client_falls_back_to_azp_and_sub() -> None:
    for claims, client in (({"azp": "app"}, "app"), ({}, "agent-1"), ({"sub": ABSENT}, "")):
        principal = only(token({"typ": "JWT"}, client_id=ABSENT, **claims))
        assert isinstance(principal, Principal)
        assert principal.client_id == client


def test_no_credentials_get_a_challenge_without_error() -> None:
    for headers in ((), ("Basic YQ==",), ("",), ("DPoP x",)):
        error = refusal(*headers)
        assert (error.status, error.code) == (401, "UNAUTHORIZED")
        assert error.www_authenticate == 'Bearer realm="agentidp-analytics"'


def test_bad_token_gets_invalid_token() -> None:
    error = refusal(token(exp=int(NOW) - 1))
    assert error.www_authenticate == (
        'Bearer realm="agentidp-analytics", error="invalid_token", error_description="The token has expired"'
    )
    assert error.headers["Cache-Control"] == "no-store"
    assert "Retry-After" not in error.headers


def test_two_headers_get_invalid_request() -> None:
    error = refusal(token(), token())
    assert (error.status, error.code, error.reason) == (400, "VALIDATION_ERROR", Reason.SEVERAL_HEADERS)
    assert 'error="invalid_request"' in str(error.www_authenticate)


def test_missing_scope_names_the_scope() -> None:
    error = refusal(token(scope="other"))
    assert (error.status, error.code) == (403, "FORBIDDEN")
    assert str(error.www_authenticate).endswith(', scope="analytics:read"')
    assert 'error="insufficient_scope"' in str(error.www_authenticate)


def test_scope_is_not_asked_for_when_none_is_required() -> None:
    principal = only(token(scope=["analytics:read"]), required_scope=None)
    assert isinstance(principal, Principal)
    assert principal.scopes == frozenset()


def test_missing_tenant_is_forbidden_and_asks_for_no_scope() -> None:
    error = refusal(token(organization_id=ABSENT))
    assert (error.status, error.code, error.reason) == (403, "FORBIDDEN", Reason.TENANT)
    assert "scope=" not in str(error.www_authenticate)


REASONS: dict[Reason, tuple[str, ...]] = {
    Reason.NO_CREDENTIALS: (),
    Reason.OTHER_SCHEME: ("Basic YQ==",),
    Reason.SEVERAL_HEADERS: (token(), token()),
    Reason.TOO_LONG: ("Bearer " + "a" * 8193,),
    Reason.MALFORMED: ("Bearer abc",),
    Reason.ALGORITHM: (token({"alg": "RS512"}),),
    Reason.TOKEN_TYPE: (token({"typ": "dpop+jwt"}),),
    Reason.HEADER: (token({"crit": ["x"]}),),
    Reason.ISSUER: (token(iss="https://evil.example"),),
    Reason.UNKNOWN_KEY: (token({"kid": "nobody"}),),
    Reason.SIGNATURE: (token({"kid": "next"}),),
    Reason.CLAIMS: (token(jti=ABSENT),),
    Reason.EXPIRED: (token(exp=int(NOW)),),
    Reason.NOT_YET_VALID: (token(nbf=int(NOW) + 1),),
    Reason.LIFETIME: (token(exp=int(NOW) + 86_401),),
    Reason.AUDIENCE: (token(aud="other"),),
    Reason.OTHER_KIND: (token(nonce="n"),),
    Reason.SENDER_CONSTRAINED: (token(cnf={"jkt": "x"}),),
    Reason.SCOPE: (token(scope="other"),),
    Reason.TENANT: (token(organization_id="%"),),
}


def test_every_reason_is_reached() -> None:
    for reason, headers in REASONS.items():
        assert refusal(*headers).reason is reason
    assert set(Reason) - set(REASONS) == {Reason.KEYS_UNAVAILABLE}


def test_no_text_of_an_answer_breaks_its_header() -> None:
    for reason in Reason:
        error = AuthError(reason, scope="a:b", retry_after=3)
        assert re.fullmatch(r'[A-Za-z0-9 ,.\'=":_-]+', error.www_authenticate or "-")
        assert str(error) == error.message


def test_error_carries_no_trace_of_the_token() -> None:
    for headers in REASONS.values():
        error = refusal(*headers)
        assert error.__context__ is None
        assert error.__cause__ is None


# Keys: out of reach, hanging, several issuers


def test_unreachable_keys_are_unavailable_with_retry_after() -> None:
    async def test() -> None:
        async with serving() as service:
            service.jwks.respond = lambda: web.Response(status=500)
            good = Attack(30, "good", bearer(ISSUER.token(NOW)), frozenset({503}))
            answer = await service.get(good)
            assert complaints(good, answer, ISSUER.tenant) == []
            assert int(answer.headers["retry-after"]) in range(1, 11)
            assert "www-authenticate" not in answer.headers
            bad = Attack(30, "bad", bearer(ISSUER.token(NOW, {"alg": "HS256"}, b"x")), frozenset({401}))
            assert complaints(bad, await service.get(bad), ISSUER.tenant) == []
            assert service.jwks.hits == 1

    asyncio.run(test())


def test_held_keys_outlive_an_outage() -> None:
    async def test() -> None:
        async with serving() as service:
            good = Attack(0, "good", bearer(ISSUER.token(NOW)), frozenset({200}))
            assert (await service.get(good)).status == 200
            service.jwks.respond = lambda: web.Response(status=500)
            unknown = Attack(12, "unknown", bearer(ISSUER.token(NOW, {"kid": "new"})), frozenset({401}))
            assert (await service.get(unknown)).status == 401
            assert (await service.get(good)).status == 200

    asyncio.run(test())


def test_valid_request_does_not_wait_for_a_strangers_fetch() -> None:
    async def test() -> None:
        async with serving() as service:
            good = Attack(0, "good", bearer(ISSUER.token(NOW)), frozenset({200}))
            assert (await service.get(good)).status == 200
            await service.jwks.arrival()
            service.keys._attempted_at -= 10  # the gap has passed
            service.jwks.open.clear()
            strangers = [
                asyncio.create_task(
                    service.get(Attack(12, "unknown", bearer(ISSUER.token(NOW, {"kid": f"{n}"})), frozenset({401})))
                )
                for n in range(50)
            ]
            await service.jwks.arrival()
            assert [(await service.get(good)).status for _ in range(10)] == [200] * 10
            assert not any(stranger.done() for stranger in strangers)
            service.jwks.open.set()
            assert {answer.status for answer in await asyncio.gather(*strangers)} == {401}
            assert service.jwks.hits == 2

    asyncio.run(test())


def test_key_without_kid_is_found_only_in_a_set_of_one() -> None:
    without = token({"kid": ABSENT})
    assert isinstance(only(without, jwks={"keys": [public_jwk(ISSUER.main, kid="main")]}), Principal)
    assert isinstance(only(without, jwks={"keys": [public_jwk(ISSUER.main)]}), Principal)
    assert refusal(without, jwks={"keys": [public_jwk(ISSUER.next)]}).reason is Reason.SIGNATURE
    assert refusal(without).reason is Reason.UNKNOWN_KEY


def test_key_set_without_usable_key_is_unauthorized() -> None:
    weak = token({"kid": "weak"})
    assert refusal(weak, jwks={"keys": [public_jwk(ISSUER.weak, kid="weak")]}).reason is Reason.UNKNOWN_KEY


def test_each_issuer_has_its_own_keys_even_under_one_kid() -> None:
    async def test() -> None:
        other = Issuer("https://other.example", ISSUER.audience, "org-7")
        first, second = JwksServer(ISSUER.jwks()), JwksServer(other.jwks())
        async with first, second, aiohttp.ClientSession() as session:
            issuers = {
                issuer.url: KeySet(session, server.url, algorithms=["RS256"])
                for issuer, server in ((ISSUER, first), (other, second))
            }
            policy = TokenPolicy(
                issuers=tuple(issuers), audiences=frozenset({ISSUER.audience}), jwks_urls=(first.url, second.url)
            )
            verifier = Verifier(policy, issuers, lambda: NOW)

            async def tenant(issuer: Issuer, **claims: Any) -> str:
                return (await verifier.verify([f"Bearer {issuer.token(NOW, **claims)}"])).tenant

            assert await tenant(ISSUER) == "org-1"
            assert await tenant(other) == "org-7"
            for issuer, claimed in ((other, ISSUER.url), (ISSUER, other.url)):
                with pytest.raises(AuthError) as refused:
                    await tenant(issuer, iss=claimed)
                assert refused.value.reason is Reason.SIGNATURE
            with pytest.raises(AuthError) as refused:
                await tenant(ISSUER, iss="https://third.example")
            assert refused.value.reason is Reason.ISSUER
            assert (first.hits, second.hits) == (1, 1)

    asyncio.run(test())


def test_unknown_issuer_causes_no_fetch() -> None:
    async def test() -> None:
        async with serving() as service:
            with pytest.raises(AuthError):
                await service.verifier.verify([token(iss="https://evil.example")])
            assert service.jwks.hits == 0

    asyncio.run(test())


# Checks given up, other algorithms, other settings


def test_checks_given_up_leave_the_rest_in_force() -> None:
    lax: dict[str, Any] = {"no_issuer_check": True, "audiences": None}
    plain = {"typ": "JWT"}
    assert isinstance(only(token(plain, iss=ABSENT, aud=ABSENT), **lax), Principal)
    assert isinstance(only(token(iss="https://any.example", aud="any"), **lax), Principal)
    for header, claims, reason in (
        (None, {"iss": ABSENT}, Reason.CLAIMS),
        (None, {"aud": ABSENT}, Reason.CLAIMS),
        (plain, {"iss": 1}, Reason.CLAIMS),
        (plain, {"aud": [1]}, Reason.CLAIMS),
        (plain, {"iat": ABSENT}, Reason.CLAIMS),
        (plain, {"exp": ABSENT}, Reason.CLAIMS),
        (plain, {"nonce": "n"}, Reason.OTHER_KIND),
    ):
        assert refusal(token(header, **claims), **lax).reason is reason


def test_token_types_are_a_setting() -> None:
    assert refusal(token({"typ": "JWT"}), token_types=("at+jwt",)).reason is Reason.TOKEN_TYPE
    assert refusal(token({"typ": "application/at+jwt"}), token_types=("at+jwt",)).reason is Reason.TOKEN_TYPE
    assert isinstance(only(token({"typ": "Access+JWT"}, sub=ABSENT), token_types=("access+jwt",)), Principal)


def test_leeway_forgives_the_issuers_clock_but_not_expiry() -> None:
    ahead: dict[str, Any] = {"iat": int(NOW) + 5, "nbf": int(NOW) + 5}
    assert refusal(token(**ahead)).reason is Reason.NOT_YET_VALID
    assert isinstance(only(token(**ahead), leeway=5), Principal)
    assert refusal(token(iat=int(NOW) + 6), leeway=5).reason is Reason.NOT_YET_VALID
    assert refusal(token(exp=int(NOW) - 1), leeway=5).reason is Reason.EXPIRED
    assert refusal(token(iat=int(NOW) + 5, exp=int(NOW) + 5), leeway=5).reason is Reason.LIFETIME


def test_lifetime_limit_is_inclusive() -> None:
    assert isinstance(only(token(exp=int(NOW) + 60), max_token_lifetime=60), Principal)
    assert refusal(token(exp=int(NOW) + 61), max_token_lifetime=60).reason is Reason.LIFETIME


def test_elliptic_curve_tokens_and_their_forgeries() -> None:
    settings: dict[str, Any] = {"algorithms": ("ES256", "EdDSA")}
    header = {"alg": "ES256", "kid": "curve"}
    good = "Bearer " + ISSUER.token(NOW, header, ISSUER.curve)
    edwards = "Bearer " + ISSUER.token(NOW, {"alg": "EdDSA", "kid": "edwards"}, ISSUER.edwards)
    assert isinstance(only(good, **settings), Principal)
    assert isinstance(only(edwards, **settings), Principal)
    text, _, signature = good.rpartition(".")
    forged = [bytes(64), b"\xff" * 64, bytes(63), bytes(65), b"0\x06\x02\x01\x00\x02\x01\x00"]
    for raw in forged:
        assert refusal(f"{text}.{b64(raw)}", **settings).reason is Reason.SIGNATURE
    assert refusal(f"{edwards.rpartition('.')[0]}.{b64(bytes(64))}", **settings).reason is Reason.SIGNATURE
    assert refusal(f"{edwards.rpartition('.')[0]}.{signature}", **settings).reason is Reason.SIGNATURE
    mixed = "Bearer " + ISSUER.token(NOW, {"alg": "EdDSA", "kid": "curve"}, ISSUER.edwards)
    assert refusal(mixed, **settings).reason is Reason.UNKNOWN_KEY
    assert refusal(token(), **settings).reason is Reason.ALGORITHM


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"issuers": ()}, "--issuer"),
        ({"issuers": ("",)}, "--issuer"),
        ({"audiences": frozenset()}, "--audience"),
        ({"audiences": frozenset({""})}, "--audience"),
        ({"algorithms": ()}, "--jwt-algorithms"),
        ({"algorithms": ("RS256", "HS256")}, "--jwt-algorithms"),
        ({"token_types": ()}, "--token-types"),
        ({"token_types": ("",)}, "--token-types"),
        ({"tenant_claim": ""}, "--tenant-claim"),
        ({"max_token_lifetime": 0}, "--max-token-lifetime"),
        ({"required_scope": "two scopes"}, "--required-scope"),
        ({"required_scope": 'a"'}, "--required-scope"),
        ({"required_scope": ""}, "--required-scope"),
        ({"required_scope": "a\r\nX: y"}, "--required-scope"),
        ({"leeway": -1}, "leeway"),
    ],
)
def test_setting_that_would_accept_all_or_nothing_is_refused(changes: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"issuers": (ISSUER.url,), "audiences": frozenset({"a"}), "jwks_urls": ("https://i/jwks",)}
    TokenPolicy(**good)
    with pytest.raises(ValueError, match=named):
        TokenPolicy(**(good | changes))


# Arbitrary input


async def outcome(verifier: Verifier, headers: list[str]) -> Principal | AuthError:
    try:
        return await verifier.verify(headers)
    except AuthError as error:
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
header_values = st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))
segments = st.binary(max_size=60).map(b64) | json_values.map(to_json).map(b64)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(header_values | header_values.map("Bearer ".__add__), max_size=2))
def test_arbitrary_header_is_refused(values: list[str], loop: asyncio.Runner, service: Service) -> None:
    error = loop.run(outcome(service.verifier, values))
    assert isinstance(error, AuthError)
    assert error.status in (400, 401)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(segments, min_size=3, max_size=3))
def test_arbitrary_segments_are_refused(parts: list[str], loop: asyncio.Runner, service: Service) -> None:
    error = loop.run(outcome(service.verifier, ["Bearer " + ".".join(parts)]))
    assert isinstance(error, AuthError)
    assert error.status == 401


HEADER_NAMES = ["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5u", "x5c", "cty", "zip", "enc"]
CLAIM_NAMES = ["iss", "aud", "sub", "client_id", "azp", "jti", "iat", "exp", "nbf", "scope", "organization_id", "cnf"]


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(HEADER_NAMES), json_values, max_size=2),
    claims=st.dictionaries(st.sampled_from([*CLAIM_NAMES, "nonce", "events", "typ"]), json_values, max_size=3),
)
def test_signed_token_with_arbitrary_members_never_fails_otherwise(
    header: dict[str, Any], claims: dict[str, Any], loop: asyncio.Runner, service: Service
) -> None:
    text = ISSUER.compact(to_json(ISSUER.header(**header)), to_json(ISSUER.claims(NOW, **claims)))
    result = loop.run(outcome(service.verifier, [f"Bearer {text}"]))
    if isinstance(result, AuthError):
        assert result.status in (401, 403)
    else:
        assert claims.get("organization_id", ISSUER.tenant) == result.tenant


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_other_spelling_of_a_good_token_is_refused(data: st.DataObject, loop: asyncio.Runner, service: Service) -> None:
    good = ISSUER.token(NOW)
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.sampled_from([0, 1]))
    put = data.draw(st.text(st.characters(codec="latin-1"), max_size=1))
    changed = good[:at] + put + good[at + cut :]
    if changed == good:
        return
    result = loop.run(outcome(service.verifier, [f"Bearer {changed}"]))
    assert isinstance(result, AuthError)
    assert result.status == 401


@settings(deadline=None)
@given(data=st.binary() | json_values.map(to_json))
def test_json_reader_returns_an_object_or_raises_value_error(data: bytes) -> None:
    try:
        value = parse_json_object(data)
    except ValueError:
        return
    assert value == json.loads(data)


def test_json_depth_limit_does_not_depend_on_the_callers_depth() -> None:
    fits = b'{"x":' * MAX_JSON_DEPTH + b"1" + b"}" * MAX_JSON_DEPTH
    assert parse_json_object(fits)
    with pytest.raises(ValueError, match="deeply"):
        parse_json_object(b'{"x":' + fits + b"}")
