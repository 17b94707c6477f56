"""kill -9 and recount: clients send, resend and overlap while the service, or the store behind it, is killed at random.

Every event whose batch was answered 200 must be counted exactly once in all answers after every restart. An event
whose batch was not answered may count once or not at all, until it is sent again.

    python -m tests.torture --seconds 60 [--seed N] [--server] [--forget-marks]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clickhouse.event import Event
from clickhouse.marks import ORPHAN_AFTER_SECONDS
from clickhouse.upkeep import PAUSE_SECONDS
from tests.support.bridge.process import Bridge
from tests.support.oracle import Oracle
from tests.support.service import INGEST_TOKEN, ROOT, Service, request, run, wait_for

TENANTS = ("org-a", "org-b", "org-c")
CLIENTS = 4
LEAST_KILLS = 20
_FORGET = (
    "import sys; from clickhouse.connection import Connection; Connection(sys.argv[1]).command('TRUNCATE TABLE marks')"
)


@dataclass
class Client:
    """Sends batches of new, late, duplicated and overlapping events; remembers which were answered."""

    number: int
    random: random.Random
    answered: list[Event] = field(default_factory=list)
    unanswered: list[Event] = field(default_factory=list)
    batches: int = 0

    def batch(self) -> list[Event]:
        now_ms = int(time.time() * 1000)
        fresh = [self._event(now_ms, serial) for serial in range(self.random.randint(1, 40))]
        known = self.answered + self.unanswered
        again = self.random.sample(known, min(len(known), self.random.randint(0, 30)))
        batch = [*fresh, *again, *self.random.sample(fresh, self.random.randint(0, len(fresh)))]
        self.random.shuffle(batch)
        self.batches += 1
        return batch

    def _event(self, now_ms: int, serial: int) -> Event:
        ago = self.random.choice((0, 60_000, 3_600_000, 86_400_000, 40 * 86_400_000))
        return Event(
            tenant_id=self.random.choice(TENANTS),
            issued_at=now_ms - int(self.random.random() * ago),
            event_id=f"{self.number}-{self.batches}-{serial}",
            agent_id=f"agent-{self.random.randrange(5)}",
            outcome=self.random.choice(("success", "success", "success", "failure")),
        )

    def send(self, url: str, batch: list[Event]) -> None:
        body = json.dumps([event._asdict() for event in batch]).encode()
        headers = {"Authorization": f"Bearer {INGEST_TOKEN}", "Content-Type": "application/json"}
        try:
            status, _, answer = request("POST", f"{url}/api/v1/events", headers, body)
        except OSError:
            status, answer = 0, b""
        if status == 200:
            assert json.loads(answer)["accepted"] == len(batch), answer
            self.answered += batch
        elif status in (0, 503):
            self.unanswered += batch
        else:
            raise AssertionError(f"client {self.number}: {status} {answer[:300]!r}")


@dataclass
class Outcome:
    """What a run came to; `lost` and `doubled` are tokens."""

    kills: int = 0
    rounds: int = 0
    events: int = 0
    lost: int = 0
    doubled: int = 0
    other: list[str] = field(default_factory=list)
    ready_seconds: list[float] = field(default_factory=list)


def torture(
    directory: Path,
    seconds: float,
    seed: int,
    *,
    server: bool,
    least_kills: int = LEAST_KILLS,
    forget_marks: bool = False,
) -> Outcome:
    """Runs for `seconds` and until there were `least_kills` kills.

    `forget_marks` switches the protection off: after each kill the marks are gone, as if they had not been durable.
    """
    pick = random.Random(seed)
    clients = [Client(number, random.Random(seed * 100 + number)) for number in range(CLIENTS)]
    outcome = Outcome()
    deadline = time.monotonic() + seconds
    with _stack(directory, server) as (service, bridge):
        while time.monotonic() < deadline or outcome.kills < least_kills:
            stop = threading.Event()
            threads = [threading.Thread(target=_keep_sending, args=(client, service.url, stop)) for client in clients]
            for thread in threads:
                thread.start()
            # The moment of the kill is the point of the test: soon after a start's repair, or around a recount.
            around_a_recount = pick.random() < 0.2
            time.sleep(pick.uniform(PAUSE_SECONDS, PAUSE_SECONDS + 1) if around_a_recount else pick.uniform(0.05, 0.6))
            victim = bridge if bridge is not None and pick.random() < 0.7 else service
            victim.kill()
            outcome.kills += 1
            stop.set()
            for thread in threads:
                thread.join()
            if forget_marks:
                subprocess.run([sys.executable, "-c", _FORGET, service.dsn], cwd=ROOT, check=True)
            started = time.monotonic()
            if bridge is not None and victim is bridge:
                bridge.restart()
                service.wait_ready()
            else:
                service.start()
            outcome.ready_seconds.append(time.monotonic() - started)
            outcome.rounds += 1
            judge_bounds(service, clients, outcome)
        for client in clients:  # what was not answered is sent again until it is, as senders do
            pending, client.unanswered = client.unanswered, []
            for start in range(0, len(pending), 500):
                client.send(service.url, pending[start : start + 500])
            assert client.unanswered == []
        judge_exactly(service, clients, outcome, forgotten=forget_marks)
        service.stop()
        verified = run("verify", "--dsn", service.dsn)
        if verified.returncode != 0:
            outcome.other.append(f"verify: {verified.stdout[-500:]} {verified.stderr[-500:]}")
    outcome.events = len({(e.tenant_id, e.issued_at, e.event_id) for client in clients for e in client.answered})
    return outcome


@contextlib.contextmanager
def _stack(directory: Path, server: bool) -> Iterator[tuple[Service, Bridge | None]]:
    options = ("--refresh-interval", "0.2s", "--zero-hold", "0s")
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(Bridge(directory / "bridge")) if server else None
        dsn = bridge.dsn_of("analytics") if bridge else ""
        if bridge:
            migrated = run("migrate", "--dsn", dsn)
            assert migrated.returncode == 0, migrated.stderr
        yield stack.enter_context(Service(directory, *options, dsn=dsn)), bridge


def _keep_sending(client: Client, url: str, stop: threading.Event) -> None:
    while not stop.is_set():
        client.send(url, client.batch())


def judge_bounds(service: Service, clients: list[Client], outcome: Outcome) -> None:
    """Right after a restart: at least what was answered, at most what was sent, and the three answers agree."""
    answered = Oracle(event for client in clients for event in client.answered)
    sent = Oracle(event for client in clients for event in (*client.answered, *client.unanswered))
    today = datetime.now(UTC).date()
    for tenant in TENANTS:
        trend = _ask(service, tenant, "tokens?days=90")["data"]
        least, most = dict(answered.trend(tenant, today, 90)), dict(sent.trend(tenant, today, 90))
        for day in trend:
            date = datetime.fromisoformat(day["date"]).date()
            outcome.lost += max(0, least.get(date, 0) - day["count"])
            outcome.doubled += max(0, day["count"] - most.get(date, 0))
        total = sum(day["count"] for day in trend)
        cells = sum(cell["count"] for cell in _ask(service, tenant, "agents/activity?days=90")["data"])
        if cells != total:
            outcome.other.append(f"{tenant}: trend {total}, activity {cells}")


def judge_exactly(service: Service, clients: list[Client], outcome: Outcome, *, forgotten: bool) -> None:
    """With everything answered: all three answers and the counters equal the oracle, and a repeat changes nothing."""
    oracle = Oracle(event for client in clients for event in client.answered)
    for client in clients:
        client.send(service.url, client.random.sample(client.answered, min(500, len(client.answered))))
    today = datetime.now(UTC).date()
    for tenant in TENANTS:
        trend = [
            (datetime.fromisoformat(day["date"]).date(), day["count"])
            for day in _ask(service, tenant, "tokens?days=90")["data"]
        ]
        activity = [(c["dow"], c["hour"], c["count"]) for c in _ask(service, tenant, "agents/activity?days=90")["data"]]
        agents = [(row["agentId"], row["tokenCount"]) for row in _ask(service, tenant, "agents")["data"]]
        wanted = oracle.trend(tenant, today, 90)
        if trend != wanted:
            outcome.lost += sum(max(0, want[1] - got[1]) for want, got in zip(wanted, trend, strict=True))
            outcome.doubled += sum(max(0, got[1] - want[1]) for want, got in zip(wanted, trend, strict=True))
        if activity != oracle.activity(tenant, today, 90):
            outcome.other.append(f"{tenant}: activity differs")
        if agents != oracle.agents(tenant, today):
            outcome.other.append(f"{tenant}: agents differ")
    totals = {tenant: oracle.total(tenant) for tenant in TENANTS}
    try:
        # Behind a server, the marks of a killed process are taken over when they are old enough.
        seconds = 1 if forgotten else 30 + ORPHAN_AFTER_SECONDS
        wait_for(lambda: service.samples("agentidp_tenant_tokens_issued_total") == totals, seconds)
    except AssertionError:
        outcome.other.append(f"counters {service.samples('agentidp_tenant_tokens_issued_total')}, wanted {totals}")


def _ask(service: Service, tenant: str, question: str) -> Any:
    status, body = service.get(f"/api/v1/analytics/{question}", tenant)
    assert status == 200, body
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--server", action="store_true", help="over HTTP, killing the server as well")
    parser.add_argument("--forget-marks", action="store_true", help="the control run: must fail")
    parser.add_argument("--kills", type=int, default=LEAST_KILLS, help="at least so many")
    arguments = parser.parse_args()
    kinds = (True,) if arguments.server else (False,) if arguments.forget_marks else (False, True)
    for server in kinds:
        kind = "server" if server else "embedded"
        print(f"{kind}: seed {arguments.seed}, {arguments.seconds:.0f} s ...", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            outcome = torture(
                Path(directory),
                arguments.seconds / len(kinds),
                arguments.seed,
                server=server,
                least_kills=arguments.kills,
                forget_marks=arguments.forget_marks,
            )
        print(
            f"{kind}: {outcome.kills} kills, {outcome.events:,} events, "
            f"{outcome.lost} lost, {outcome.doubled} doubled, slowest start {max(outcome.ready_seconds):.1f} s",
            flush=True,
        )
        for line in outcome.other:
            print(f"  {line}")
        if outcome.lost or outcome.doubled or outcome.other:
            sys.exit(1)


if __name__ == "__main__":
    main()
