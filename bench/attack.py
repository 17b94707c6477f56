"""Under attack: what valid callers' medians do while somebody else misbehaves. Ratios to the calm before, same run.

    python -m bench.attack [--seconds 8]

1. 50 tokens with unknown keys a second while the issuer's key set endpoint hangs.
2. One tenant asks over 32 connections as fast as it can; the others go on asking at their pace.
3. One source sends bodies made to hurt over 8 connections: 50,000 empty events in 300 bytes, ten megabytes of brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.hostile_tokens import Attack, Issuer, JwksServer, bearer, send
from tests.support.service import INGEST_TOKEN, Service

PATH = "/api/v1/analytics/tokens?days=90"
FLOOD_CONNECTIONS = 32
HOSTILE_CONNECTIONS = 8
HOSTILE_BODIES = {
    "50,000 empty events": gzip.compress(b"[" + b",".join([b"{}"] * 50_000) + b"]"),
    "10 MB of brackets": gzip.compress(b"[" + b"[]," * 3_300_000 + b"[]]"),
    "a million values in an ignored field": gzip.compress(b'{"x":[' + b"[]," * 490_000 + b"[]]}"),
}
UNKNOWN_A_SECOND = 50

Ask = Callable[[str], Coroutine[Any, Any, int]]


async def median_of(ask: Ask, tokens: list[str], seconds: float) -> float:
    """Median seconds of one caller that asks for each token in turn, 50 times a second."""
    took = []
    deadline = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        status = await ask(tokens[number % len(tokens)])
        assert status == 200, status
        took.append(time.perf_counter() - started)
        number += 1
        await asyncio.sleep(max(0.0, 0.02 - took[-1]))
    return statistics.median(took)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    seconds = parser.parse_args().seconds
    issuer = Issuer()
    with tempfile.TemporaryDirectory() as name:
        async with JwksServer(issuer.jwks()) as jwks:
            trust = ("--issuer", issuer.url, "--audience", issuer.audience, "--jwks-url", jwks.url)
            service = Service(Path(name), issuer=trust)
            await asyncio.to_thread(service.start)
            try:
                await asyncio.to_thread(fill, service)

                async def ask(token: str) -> int:
                    answer = await send("127.0.0.1", service.port, PATH, Attack(0, "", bearer(token), frozenset()))
                    return answer.status

                now = time.time()
                tokens = [issuer.token(now, organization_id=f"org-{number}") for number in range(4)]
                await median_of(ask, tokens, 1)
                await hanging(ask, issuer, jwks, tokens, seconds)
                await flooded(ask, issuer, tokens, seconds)
                await hostile_bodies(ask, service, tokens, seconds)
            finally:
                jwks.open.set()
                await asyncio.to_thread(service.stop)


def fill(service: Service) -> None:
    now = datetime.now(UTC)
    for tenant in range(5):
        rows = [
            {
                "event_id": f"{number}",
                "tenant_id": f"org-{tenant}",
                "agent_id": f"agent-{number % 20}",
                "issued_at": (now - timedelta(minutes=number * 3)).isoformat(),
            }
            for number in range(20_000)
        ]
        for start in range(0, len(rows), 10_000):
            assert service.post(rows[start : start + 10_000])[0] == 200


async def hostile_bodies(ask: Ask, service: Service, tokens: list[str], seconds: float) -> None:
    headers = {"Authorization": f"Bearer {INGEST_TOKEN}", "Content-Type": "application/json"}
    for name, body in HOSTILE_BODIES.items():
        calm = await median_of(ask, tokens, seconds)
        stop = asyncio.Event()
        answers: dict[int, int] = {}

        async def attack(session: aiohttp.ClientSession, body: bytes = body) -> None:
            while not stop.is_set():  # noqa: B023 - the task ends with the loop's turn
                packed = headers | {"Content-Encoding": "gzip"}
                async with session.post(f"{service.url}/api/v1/events", data=body, headers=packed) as answer:
                    await answer.read()
                    answers[answer.status] = answers.get(answer.status, 0) + 1  # noqa: B023

        async with aiohttp.ClientSession() as session:
            attackers = [asyncio.create_task(attack(session)) for _ in range(HOSTILE_CONNECTIONS)]
            attacked = await median_of(ask, tokens, seconds)
            stop.set()
            await asyncio.gather(*attackers)
        print(
            f"{name} over {HOSTILE_CONNECTIONS} connections ({answers}): the others' median {calm * 1000:.1f} ms "
            f"before, {attacked * 1000:.1f} ms during, ratio {attacked / calm:.2f}; {peak_mib(service.pid)} MiB at most"
        )


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


async def hanging(ask: Ask, issuer: Issuer, jwks: JwksServer, tokens: list[str], seconds: float) -> None:
    calm = await median_of(ask, tokens, seconds)
    jwks.open.clear()
    stop = asyncio.Event()
    sent: list[asyncio.Task[int]] = []

    async def attack() -> None:
        while not stop.is_set():
            token = issuer.token(time.time(), {"kid": f"unknown-{len(sent)}"})
            sent.append(asyncio.create_task(ask(token)))
            await asyncio.sleep(1 / UNKNOWN_A_SECOND)

    attacker = asyncio.create_task(attack())
    attacked = await median_of(ask, tokens, seconds)
    stop.set()
    await attacker
    jwks.open.set()
    statuses = set(await asyncio.gather(*sent))
    print(
        f"hanging key set, {len(sent)} unknown keys -> {sorted(statuses)}: median {calm * 1000:.1f} ms before, "
        f"{attacked * 1000:.1f} ms during, ratio {attacked / calm:.2f}"
    )


async def flooded(ask: Ask, issuer: Issuer, tokens: list[str], seconds: float) -> None:
    calm = await median_of(ask, tokens, seconds)
    token = issuer.token(time.time(), organization_id="org-4")
    stop = asyncio.Event()
    answers: dict[int, int] = {}

    async def flood() -> None:
        while not stop.is_set():
            status = await ask(token)
            answers[status] = answers.get(status, 0) + 1

    flooders = [asyncio.create_task(flood()) for _ in range(FLOOD_CONNECTIONS)]
    attacked = await median_of(ask, tokens, seconds)
    stop.set()
    await asyncio.gather(*flooders)
    print(
        f"one tenant floods over {FLOOD_CONNECTIONS} connections ({answers}): the others' median {calm * 1000:.1f} ms "
        f"before, {attacked * 1000:.1f} ms during, ratio {attacked / calm:.2f}"
    )


if __name__ == "__main__":
    asyncio.run(main())
