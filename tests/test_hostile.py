"""The assembled service under attack: every hostile token, a key set that hangs, and what its schema allows."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import tests.query_api.auth.test_jwks as jwks_tests
import tests.query_api.auth.test_verifier as verifier_tests
from tests.support.hostile_tokens import Answer, Attack, Issuer, JwksServer, attacks, bearer, complaints, controls, send
from tests.support.service import INGEST_TOKEN, ROOT, Service, request

ISSUER = Issuer()
PATHS = (
    *("/api/v1/analytics/tokens", "/api/v1/analytics/agents/activity", "/api/v1/analytics/agents"),
    *("/api/v1/analytics/alerts", "/api/v1/analytics/agents/detail?agent=a"),
)
AT_ONCE = 16


@asynccontextmanager
async def hostile_world(directory: Path) -> AsyncIterator[tuple[Service, JwksServer]]:
    async with JwksServer(ISSUER.jwks()) as jwks:
        trust = ("--issuer", ISSUER.url, "--audience", ISSUER.audience, "--jwks-url", jwks.url)
        service = Service(directory, "--required-scope", "analytics:read", issuer=trust)
        await asyncio.to_thread(service.start)
        try:
            yield service, jwks
        finally:
            await asyncio.to_thread(service.stop)


def test_every_hostile_token_on_every_endpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hostile_world(tmp_path) as (service, jwks):
            now = time.time()
            cases = [*attacks(ISSUER, now, f"{jwks.origin}/elsewhere"), *controls(ISSUER, now)]
            assert len(cases) > 300
            known = {"event_id": "1", "tenant_id": ISSUER.tenant, "agent_id": "a", "issued_at": now}
            assert (await asyncio.to_thread(service.post, known))[0] == 200
            limit = asyncio.Semaphore(AT_ONCE)

            async def judge(path: str, attack: Attack) -> list[str]:
                async with limit:
                    answer = await send("127.0.0.1", service.port, path, attack)
                return [f"{path} {attack}: {complaint}" for complaint in complaints(attack, answer, ISSUER.tenant)]

            found = await asyncio.gather(*(judge(path, attack) for path in PATHS for attack in cases))
            assert [complaint for complaints_ in found for complaint in complaints_] == []
            assert jwks.elsewhere_hits == 0, "an address from a token was followed"
            log = service.log()
            assert "Traceback" not in log
            for attack in cases:
                for _, value in attack.headers:
                    assert not any(part in log for part in value.decode("latin-1").split(".") if len(part) > 16)

    asyncio.run(scenario())


def test_documented_attacks_are_the_tested_ones() -> None:
    document = (ROOT / "docs" / "attacks.md").read_text()
    rows = re.findall(r"^\| *(\d+) *\|.*\|([^|]*)\|$", document, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    suite = attacks(ISSUER, time.time())
    assert Counter(attack.id for attack in suite).most_common(1)[0][1] == 1
    cases = Counter(attack.number for attack in suite)
    functions = {
        name
        for module in (sys.modules[__name__], verifier_tests, jwks_tests)
        for name, value in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(value)
    }
    for number, tests in rows:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, f"row {number} names no test"
        group = [name for name in named if name.endswith("-*")]
        assert group == ([f"{number.zfill(2)}-*"] if cases[int(number)] else [])
        assert f"({cases[int(number)]} cases)" in tests or not group
        assert set(named) - set(group) <= functions


def test_valid_requests_are_answered_while_unknown_keys_wait_for_a_hanging_issuer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with hostile_world(tmp_path) as (service, jwks):

            async def ask(token: str) -> Answer:
                request = Attack(0, "with a token", bearer(token), frozenset({200}))
                return await send("127.0.0.1", service.port, PATHS[2], request)

            assert (await ask(ISSUER.token(time.time()))).status == 200
            jwks.open.clear()
            hits = jwks.hits
            unknown = [
                asyncio.create_task(ask(ISSUER.token(time.time(), {"kid": f"unknown-{number}"})))
                for number in range(50)
            ]
            for _ in range(20):  # all of them are answered before the issuer is: it is not let go until then
                assert (await ask(ISSUER.token(time.time()))).status == 200
            assert jwks.hits - hits <= 1
            jwks.open.set()
            assert {answer.status for answer in await asyncio.gather(*unknown)} == {401}

    asyncio.run(scenario())


@pytest.mark.parametrize("caller", ["tenant", "source"])
def test_what_the_schema_allows_gets_what_the_schema_says(tmp_path: Path, caller: str) -> None:
    with Service(tmp_path) as service:
        token = service.token("org-a") if caller == "tenant" else INGEST_TOKEN
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run", f"{service.url}/openapi.json", "--header", f"Authorization: Bearer {token}",
                "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
                "response_headers_conformance,response_schema_conformance",
                "--max-examples", "25", "--seed", "20261123", "--phases", "examples,fuzzing", "--no-color",
                "--generation-database", "none",
            ],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "Traceback" not in service.log()
        assert request("GET", f"{service.url}/healthz", {})[0] == 200
