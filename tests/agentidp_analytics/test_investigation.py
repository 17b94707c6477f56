"""`alerts` and `investigate`: the same from a store and from the service that holds it; one line for an error."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentidp_analytics import cli
from agentidp_analytics.report import agent_report, alert_table, printable
from clickhouse.connection import Connection
from clickhouse.event import Event
from exporter.inquiries import Inquiries
from exporter.web_config import WebConfig
from tests.conftest import empty
from tests.exporter.test_web_config import SECRET_HASH, sign
from tests.support.bridge.process import Bridge
from tests.support.exporter_harness import running, store_of
from tests.support.rig import Rig
from tests.support.service import ROOT, Service, clean_environment, run
from tests.support.verdicts import BIN, Verdict, bins, say

DAY = 86_400
AGENT = "billing bot"
SAY = """
import json, sys
from clickhouse.connection import Connection
from tests.support.verdicts import Verdict, say
connection = Connection(sys.argv[1])
say(connection, [Verdict(*row) for row in json.loads(sys.argv[2])])
connection.close()
"""


def now_bin() -> int:
    return int(time.time()) // BIN * BIN


def events() -> list[Event]:
    at = int(time.time() * 1000) - 60_000
    ours = [
        Event(
            "org-a",
            at - number * 3_600_000,
            f"e{number}",
            AGENT,
            scope="read",
            client_ip="192.0.2.9",
            user_agent="x\x1b[2J",
        )
        for number in range(50)
    ]
    return [*ours, Event("org-b", at, "e", "theirs")]


def verdicts() -> list[Verdict]:
    old = now_bin() - 3 * DAY
    return [
        Verdict("org-a", "spike", AGENT, old, "page", 4.5, 900.0, 10.0, "5 minutes"),
        Verdict("org-a", "waste", "other", old - DAY, "ticket"),
        Verdict("org-b", "failures", "theirs", old - 2 * DAY, "ticket"),
    ]


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedded store with events and verdicts, that nobody holds."""
    directory = tmp_path_factory.mktemp("investigation")
    store = f"chdb://{directory / 'store'}"
    lines = [json.dumps(event._asdict()) for event in events()]
    (directory / "events").write_text("\n".join(lines))
    assert run("ingest", "--dsn", store, str(directory / "events")).returncode == 0
    subprocess.run([sys.executable, "-c", SAY, store, json.dumps(verdicts())], cwd=ROOT, check=True)
    return store


def read(*arguments: str) -> str:
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


def told(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The alerts that the tests made; the running service's own detector may add its own."""
    return [entry for entry in body["data"] if (entry["tenantId"], entry["kind"]) in {v[:2] for v in verdicts()}]


def test_a_store_and_the_service_that_holds_it_say_the_same(dsn: str, tmp_path: Path) -> None:
    table = read("alerts", "--dsn", dsn).splitlines()
    assert table[0].split() == [
        "since",
        "(UTC)",
        "until",
        "(UTC)",
        "severity",
        "kind",
        "tenant",
        "agent",
        "score",
        "message",
    ]
    assert [row.split()[5:7] for row in table[1:]] == [["spike", "org-a"], ["waste", "org-a"], ["failures", "org-b"]]
    assert "Agent billing bot was issued 900 tokens in 5 minutes, where about 10 are usual" in table[1]
    assert len(read("alerts", "--dsn", dsn, "--tenant", "org-b").splitlines()) == 2
    assert read("alerts", "--dsn", dsn, "--days", "1", "--tenant", "org-b") == (
        "no alert of tenant org-b in the last 1 days\n"
    )
    from_store = json.loads(read("alerts", "--dsn", dsn, "--json"))
    who = ("--tenant", "org-a", "--agent", AGENT, "--days", "7")
    detail_of_store = json.loads(read("investigate", "--dsn", dsn, *who, "--json"))
    assert [entry["kind"] for entry in detail_of_store["alerts"]] == ["spike"]

    with Service(tmp_path, "--refresh-interval", "0.2s", dsn=dsn) as service:
        in_use = run("alerts", "--dsn", dsn)
        assert in_use.returncode == 2
        assert in_use.stderr.count("\n") == 1
        assert "--url http://127.0.0.1:9464" in in_use.stderr
        url = ("--url", service.metrics_url)
        from_service = json.loads(read("alerts", *url, "--json"))
        assert list(from_service) == list(from_store) == ["days", "data"]
        assert told(from_service) == told(from_store)
        # The address wins over a store, which is not opened.
        assert json.loads(read("alerts", *url, "--dsn", dsn, "--json", "--tenant", "org-b"))["data"]
        detail = json.loads(read("investigate", *url, *who, "--json"))
        for body in (detail, detail_of_store):
            body["alerts"] = [entry["kind"] for entry in body["alerts"] if entry["kind"] == "spike"]
        assert detail == detail_of_store
        unknown = run("investigate", *url, "--tenant", "org-b", "--agent", AGENT)
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert f"--agent {AGENT!r}: tenant org-b never had this agent" in unknown.stderr
        wrong = run("alerts", "--url", service.url)
        assert wrong.returncode == 2
        assert "name the exporter listener (--metrics-listen)" in wrong.stderr


def test_the_report_has_every_section_and_nothing_that_a_terminal_obeys(dsn: str) -> None:
    report = read("investigate", "--dsn", dsn, "--tenant", "org-a", "--agent", AGENT, "--days", "7")
    lines = report.splitlines()
    assert lines[0] == "agent billing bot of tenant org-a, last 7 days (UTC)"
    assert [line for line in lines if line and not line.startswith(" ")][6:] == [
        *("days", "networks", "user agents", "grant types", "scopes", "alerts"),
    ]
    assert "tokens       50 issued, 0 requests failed" in lines
    assert "outstanding  not known: no event of it has expires_in" in lines
    assert sum("#" in line for line in lines) >= 3
    assert any(line.endswith("  192.0.2.0/24") for line in lines)
    assert any(line.endswith(r"  x\x1b[2J") for line in lines)
    assert "\x1b" not in report
    assert "spike" in lines[-1]


def test_a_server_is_read_beside_its_service(
    bridge: Bridge, server_store: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(empty(server_store))
    rig.writer.write(events())
    say(server_store, [Verdict("org-a", "silence", "", at) for at in bins(now_bin() - BIN, 2)])
    cli.main(["alerts", "--dsn", bridge.dsn_of("analytics"), "--log-format", "text"])
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[2:7] == ["lasts", "page", "silence", "org-a", "-"]
    cli.main(["investigate", "--dsn", bridge.dsn_of("analytics"), "--tenant", "org-b", "--agent", "theirs"])
    report = capsys.readouterr().out
    assert "tokens       1 issued" in report
    assert report.endswith("alerts\n  none\n")
    assert report.count("none told") == 4


@pytest.mark.parametrize("command", [("alerts",), ("investigate", "--tenant", "org-a", "--agent", AGENT)])
def test_a_reader_that_has_seen_enough_is_no_error(dsn: str, command: tuple[str, ...]) -> None:
    arguments = [sys.executable, "-m", "agentidp_analytics", *command, "--dsn", dsn]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            arguments, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, env=clean_environment(), check=False
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "bash", *arguments],
        capture_output=True, cwd=ROOT, env=clean_environment(), check=False,
    )  # fmt: skip
    assert (piped.stdout.count(b"\n"), piped.stderr) == (1, b"")


def test_an_encoding_that_lacks_a_letter_gets_an_escape(bridge: Bridge, server_store: Connection) -> None:
    say(empty(server_store), [Verdict("org-a", "spike", "größe", now_bin() - BIN)])
    table = run("alerts", "--dsn", bridge.dsn_of("analytics"), PYTHONIOENCODING="ascii")
    assert (table.returncode, r"gr\xf6\xdfe" in table.stdout) == (0, True), table.stderr


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one line of a command that ends so."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("agentidp-analytics: ")]
    assert (ended.value.code, captured.out, len(lines)) == (status, "", 1), captured.err
    return lines[0]


def test_password_and_authority_are_asked_for_in_turn(
    embedded_store: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = sign("private CA")
    authority.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    sign("server", authority).write(tmp_path / "server.pem", tmp_path / "server.key")
    (tmp_path / "web.yml").write_text(
        "tls_server_config: {cert_file: server.pem, key_file: server.key}\n"
        f"basic_auth_users: {{ops: {SECRET_HASH}}}\n"
    )
    (tmp_path / "password").write_text("s3cret\r\nnot this\n")
    (tmp_path / "wrong").write_text("another")
    rig = Rig(empty(embedded_store))

    async def scenario() -> None:
        inquiries = Inquiries(rig.alerts(), rig.agent_details())
        async with running(store_of(1), inquiries=inquiries, web_config=WebConfig(tmp_path / "web.yml")) as exporter:
            ask = ["alerts", "--url", exporter.url("")]

            async def refused(*more: str) -> str:
                return await asyncio.to_thread(fails, capsys, *ask, *more)

            assert "--ca-file" in await refused()
            trusted = ("--ca-file", str(tmp_path / "ca.pem"))
            assert "it wants --web-user and --password-file" in await refused(*trusted)
            wrong = (*trusted, "--web-user", "ops", "--password-file")
            assert "does not accept --web-user ops" in await refused(*wrong, str(tmp_path / "wrong"))
            await asyncio.to_thread(cli.main, [*ask, *wrong, str(tmp_path / "password")])
            assert capsys.readouterr().out == "no alert of any tenant in the last 7 days\n"
            plain = exporter.url("").replace("https", "http")
            assert "http or https?" in await asyncio.to_thread(fails, capsys, "alerts", "--url", plain)

    asyncio.run(scenario())


class Answering(http.server.ThreadingHTTPServer):
    status = 200
    body = b"{}"
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def answering(status: int = 200, body: bytes = b"{}") -> Iterator[Answering]:
    server = Answering(("127.0.0.1", 0), Handler)
    server.status, server.body, server.asked = status, body, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "exit_status", "named"),
    [
        (404, b'{"code":"NOT_FOUND"}', 2, "--metrics-listen"),
        (401, b"", 2, "--web-user and --password-file"),
        (503, b"The store cannot answer now\n", 1, "The store cannot answer now"),
        (500, b"\x1b[2Jboom", 1, r"answered 500: '\x1b[2Jboom'"),
        (302, b"", 1, "answered 302"),
        *((200, b, 2, "not as an exporter does") for b in (b"", b"<html>", b"[]", b"5", b"{}", b"\xff", b"[" * 99_999)),
    ],
)  # fmt: skip
def test_what_does_not_answer_as_an_exporter_is_one_line(
    status: int, body: bytes, exit_status: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        line = fails(capsys, "alerts", "--url", url, status=exit_status)
    assert f"--url {url}" in line
    assert named in line
    assert "\x1b" not in line


def test_what_is_asked_of_the_exporter_is_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(body=b'{"days":7,"data":[]}') as server:
        url = f"http://127.0.0.1:{server.server_port}"
        cli.main(["alerts", "--url", url])
        cli.main(["alerts", "--url", url + "/", "--tenant", "org-a", "--days", "90"])
        capsys.readouterr()
        fails(capsys, "investigate", "--url", url, "--tenant", "org-a", "--agent", "ü &=%")
    assert server.asked == [
        "/alerts?days=7",
        "/alerts?days=90&tenant=org-a",
        "/alerts?days=30&tenant=org-a",
        "/agents/detail?tenant=org-a&agent=%C3%BC+%26%3D%25&days=30",
    ]


def test_a_flag_wins_over_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"chdb://{tmp_path / 'missing'}"
    with answering(body=b'{"days":7,"data":[]}') as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AGENTIDP_ANALYTICS_URL", url)
        monkeypatch.setenv("AGENTIDP_ANALYTICS_CA_FILE", __file__)
        assert "does not exist" in fails(capsys, "alerts", "--dsn", missing)
        monkeypatch.delenv("AGENTIDP_ANALYTICS_CA_FILE")
        monkeypatch.setenv("AGENTIDP_ANALYTICS_DSN", missing)
        cli.main(["alerts"])  # of two variables the address
        capsys.readouterr()
        monkeypatch.delenv("AGENTIDP_ANALYTICS_URL")
        assert "does not exist" in fails(capsys, "alerts")
        cli.main(["alerts", "--url", url])
    assert len(server.asked) == 2


def test_nobody_there_is_told_with_both_ways_out(capsys: pytest.CaptureFixture[str]) -> None:
    with answering() as server:
        url = f"http://127.0.0.1:{server.server_port}"
    line = fails(capsys, "alerts", "--url", url)
    assert "cannot be reached" in line
    assert "--metrics-listen" in line
    assert "--dsn" in line


def alert(**changes: Any) -> dict[str, Any]:
    return {
        "tenantId": "org-a", "id": "x", "kind": "spike", "severity": "page", "agentId": "a", "until": None,
        "since": "2026-11-23T09:00:00Z", "score": 2.345, "threshold": 1.0, "observed": 1.0, "expected": 1.0,
        "message": "It happened.", **changes,
    }  # fmt: skip


def test_columns_line_up_whatever_is_in_them() -> None:
    lines = list(alert_table([alert(), alert(agentId=None, until="2026-11-23T10:05:00Z", tenantId="organisation-b")]))
    assert lines == [
        "since (UTC)       until (UTC)       severity  kind   tenant          agent  score  message",
        "2026-11-23 09:00  lasts             page      spike  org-a           a       2.35  It happened.",
        "2026-11-23 09:00  2026-11-23 10:05  page      spike  organisation-b  -       2.35  It happened.",
    ]
    for hostile in ("a\x1b[31m", "a\nb", "a\u202eb", "a\x9bb", "a\ud800b"):
        assert len(list(alert_table([alert(agentId=hostile, message=hostile)]))) == 2
        assert printable(hostile).isprintable()


def test_days_are_bars_of_one_scale() -> None:
    days = [(0, 0), (1, 2), (400, 0), (200, 1_000)]
    used: dict[str, list[Any]] = {"networks": [], "userAgents": [], "grantTypes": [], "scopes": []}
    detail = {
        "tenantId": "org-a", "agentId": "a", "days": 4, "firstSeen": "2026-11-23T09:00:00.123Z",
        "lastSeen": "2026-11-23T09:00:00Z", "issued": 601, "failures": 1_002, "outstanding": 12, "wasted": 0.256,
        "data": [{"date": f"2026-11-2{n}", "count": c, "failures": f} for n, (c, f) in enumerate(days)], **used,
    }  # fmt: skip
    lines = list(agent_report(detail, []))
    start = lines.index("days")
    assert lines[start + 1 : start + 5] == [
        "  2026-11-20    0",
        "  2026-11-21    1  # 2 failed",
        "  2026-11-22  400  " + "#" * 40,
        "  2026-11-23  200  " + "#" * 20 + " 1,000 failed",
    ]
    assert "outstanding  12 not expired yet" in lines
    assert "wasted       26% issued while an earlier one of the same scope had over half its lifetime left" in lines
