"""The command line as a user meets it: processes, exit codes, one-line errors, files."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from clickhouse.connection import Connection
from tests.support.bridge.process import Bridge
from tests.support.service import (
    AUDIENCE,
    INGEST_TOKEN,
    ISSUER,
    ROOT,
    Service,
    clean_environment,
    free_port,
    request,
    run,
    wait_for,
)

SERVE = ("serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
TRUST = ("--issuer", ISSUER, "--audience", AUDIENCE, "--jwks-url", "http://127.0.0.1:1/jwks")


NOW = datetime.now(UTC)


def events(count: int, tenant: str = "org-a") -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"e{number}",
            "tenant_id": tenant,
            "agent_id": f"agent-{number % 3}",
            "issued_at": (NOW - timedelta(hours=number)).isoformat(),
        }
        for number in range(count)
    ]


def ndjson(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (SERVE, "--issuer is missing"),
        ((*SERVE, "--issuer", ISSUER), "--audience is missing"),
        ((*SERVE, "--no-issuer-check", "--no-audience-check"), "--jwks-url is missing"),
        ((*SERVE, *TRUST, "--no-issuer-check"), "--no-issuer-check contradict"),
        ((*SERVE, *TRUST, "--jwt-algorithms", "HS256"), "--jwt-algorithms"),
        ((*SERVE, *TRUST, "--jwt-algorithms", "none"), "--jwt-algorithms"),
        ((*SERVE, *TRUST[:-1], "http://issuer.example/jwks"), "--jwks-url"),
        ((*SERVE, *TRUST, "--max-token-lifetime", "soon"), "--max-token-lifetime"),
        ((*SERVE, *TRUST, "--only", "api"), "--only api needs a ClickHouse server"),
        ((*SERVE, *TRUST, "--listen", "nowhere"), "--listen"),
        ((*SERVE, *TRUST, "--ingest-token-file", "/nowhere/tokens"), "--ingest-token-file"),
        ((*SERVE, *TRUST, "--dsn", "chdb://relative/path"), "--dsn"),
        ((*SERVE, *TRUST, "--dsn", "sqlite:///x"), "--dsn"),
        ((*SERVE, *TRUST, "--tls-cert", __file__), "--tls-cert and --tls-key"),
        (("token", "--tenant", "org-a", "--key", "/nowhere/key.pem"), "--key"),
        (("token", "--tenant", "no tenant", "--key", __file__), "--key"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_a_wrong_setting_ends_with_one_line_that_names_it(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    ended = run(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("agentidp-analytics: ")]
    assert len(lines) == 1, ended.stderr
    assert named in lines[0]
    assert "Traceback" not in ended.stderr


def test_every_option_has_a_variable_and_the_flag_wins(tmp_path: Path) -> None:
    environment = {"AGENTIDP_ANALYTICS_ISSUER": ISSUER, "AGENTIDP_ANALYTICS_NO_AUDIENCE_CHECK": "1"}
    ended = run(*SERVE, cwd=tmp_path, PYTHONPATH=str(ROOT), **environment)
    assert "--jwks-url is missing" in ended.stderr
    environment["AGENTIDP_ANALYTICS_JWT_ALGORITHMS"] = "none"
    ended = run(*SERVE, *TRUST[-2:], "--jwt-algorithms", "HS512", cwd=tmp_path, PYTHONPATH=str(ROOT), **environment)
    assert "HS512" in ended.stderr
    for command in ("serve", "demo", "ingest", "verify", "migrate", "token", "erase"):
        text = run(command, "--help").stdout
        options = set(re.findall(r"(?<=\s)--([a-z-]+)", text)) - {"help"}
        if command == "erase":  # what is destroyed comes from the command line only
            assert "AGENTIDP_ANALYTICS_TENANT" not in text
            options -= {"tenant", "agent"}
        for option in options:
            variable = "AGENTIDP_ANALYTICS_" + option.upper().replace("-", "_")
            assert variable in re.sub(r"\s+", "", text) or option in (
                "tls-key",
                "issuer",
                "audience",
                "no-issuer-check",
            ), (
                command,
                option,
            )


def test_ingest_reads_plain_gz_zst_and_stdin_and_keeps_the_rejects(tmp_path: Path) -> None:
    dsn = f"chdb://{tmp_path / 'store'}"
    (tmp_path / "a.ndjson").write_bytes(ndjson(events(10)))
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(ndjson(events(20))))
    (tmp_path / "c.ndjson.zst").write_bytes(zstd.compress(ndjson(events(30, "org-b"))))
    bad = [{"event_id": "x"}, *events(1), {"event_id": 1, "tenant_id": "", "agent_id": "a\n", "issued_at": "soon"}]
    (tmp_path / "bad.ndjson").write_bytes(ndjson(bad) + b"{broken\n\n")
    names = ["a.ndjson", "b.ndjson.gz", "c.ndjson.zst", "bad.ndjson"]
    rejects = tmp_path / "rejects.ndjson"
    ended = run("ingest", "--dsn", dsn, "--rejects", str(rejects), *names, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert ended.returncode == 1, ended.stderr
    assert "accepted 61, rejected 3" in ended.stdout
    told = {code: int(count) for code, count in re.findall(r"rejected for (\w+): (\d+)", ended.stdout)}
    assert told == {"required": 1, "pattern": 1, "json": 1}, "a line counts once, under its first fault"
    kept = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in kept] == [
        ("bad.ndjson", 1),
        ("bad.ndjson", 3),
        ("bad.ndjson", 4),
    ]
    assert {error["pointer"] for error in kept[1]["errors"]} == {"/event_id", "/tenant_id", "/agent_id", "/issued_at"}

    again = run("ingest", "--dsn", dsn, *names[:3], cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (again.returncode, "accepted 60, rejected 0" in again.stdout) == (0, True)
    for packed in (ndjson(events(40)), gzip.compress(ndjson(events(40))), zstd.compress(ndjson(events(40)))):
        piped = subprocess.run(
            [sys.executable, "-m", "agentidp_analytics", "ingest", "--dsn", dsn, "-"],
            input=packed,
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            check=False,
        )
        assert b"accepted 40, rejected 0" in piped.stdout, piped.stderr
    (tmp_path / "plain.gz").write_bytes(ndjson(events(3)))  # the first bytes tell, not the name
    assert "accepted 3, rejected 0" in run("ingest", "--dsn", dsn, str(tmp_path / "plain.gz")).stdout
    verified = run("verify", "--dsn", dsn)
    assert (verified.returncode, "0 differences" in verified.stdout) == (0, True), verified.stdout

    with Service(tmp_path, dsn=dsn) as service:
        (tmp_path / "more.ndjson").write_bytes(ndjson(events(70, "org-b")))
        remote = ("ingest", "--url", service.url, "--token-file", str(service.token_file))
        sent = run(*remote, "more.ndjson", cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert "accepted 70, rejected 0" in sent.stdout, sent.stderr
        for tenant, count in (("org-a", 40), ("org-b", 70)):
            _, trend = service.get("/api/v1/analytics/tokens?days=90", tenant)
            assert sum(day["count"] for day in trend["data"]) == count


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.ndjson.gz", gzip.compress(ndjson(events(500)))[:-20]),
        ("damaged.ndjson.gz", gzip.compress(ndjson(events(500)))[:40] + b"\xff" * 40),
        ("cut.ndjson.zst", zstd.compress(ndjson(events(500)))[:-20]),
        ("broken.ndjson.zst", b"\x28\xb5\x2f\xfdbroken"),
        ("none.ndjson", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip has the time in it, and workers compare names
)
def test_a_file_that_cannot_be_read_ends_with_its_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ended = run("ingest", "--dsn", f"chdb://{tmp_path / 'store'}", str(tmp_path / name))
    assert ended.returncode == (2 if content is None else 1)
    assert name in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_store_moves_to_a_server_by_export_ingest_and_verify(tmp_path: Path) -> None:
    embedded = f"chdb://{tmp_path / 'store'}"
    odd = {"event_id": 'a "quoted"\nid é', "agent_id": "agent 'é'", "outcome": "failure", "expires_in": 60}
    (tmp_path / "a.ndjson").write_bytes(ndjson([*events(50), *events(20, "org-b"), events(1)[0] | odd]))
    assert run("ingest", "--dsn", embedded, str(tmp_path / "a.ndjson")).returncode == 0
    moved = tmp_path / "moved.ndjson"
    moved.write_text(run("export", "--dsn", embedded).stdout)
    with Bridge(tmp_path / "bridge") as bridge:
        server = bridge.dsn_of("moved")
        assert run("migrate", "--dsn", server).returncode == 0
        assert "accepted 71, rejected 0" in run("ingest", "--dsn", server, str(moved)).stdout
        verified = run("verify", "--dsn", server)
        assert (verified.returncode, "0 differences" in verified.stdout) == (0, True), verified.stdout
        assert sorted(run("export", "--dsn", server).stdout.splitlines()) == sorted(moved.read_text().splitlines())


def test_api_and_exporter_as_two_processes_on_one_server(tmp_path: Path) -> None:
    with Bridge(tmp_path / "bridge") as bridge:
        dsn = bridge.dsn_of("analytics")
        unready = run(*SERVE, *TRUST, "--dsn", dsn)
        assert unready.returncode != 0
        assert "run agentidp-analytics migrate" in unready.stderr
        assert run("migrate", "--dsn", dsn).returncode == 0
        for name in ("api", "exporter"):
            (tmp_path / name).mkdir()
        exporter = Service(
            tmp_path / "exporter", "--only", "exporter", "--refresh-interval", "0.2s", "--zero-hold", "0s", dsn=dsn
        )
        with Service(tmp_path / "api", "--only", "api", dsn=dsn) as api, exporter:
            assert api.post(events(30))[0] == 200
            wait_for(lambda: exporter.samples("agentidp_tenant_tokens_issued_total") == {"org-a": 30}, 30, exporter.log)
            own = request("GET", api.metrics_url + "/metrics", {})[2].decode()
            assert "agentidp_analytics_ingest_events_accepted_total 30" in own
            assert "agentidp_tenant_" not in own
            assert not re.search("^agentidp_analytics_up", own, re.MULTILINE)
            with pytest.raises(OSError):
                request("GET", exporter.url + "/healthz", {})


def test_migrate_twice_and_a_store_of_a_newer_program(tmp_path: Path) -> None:
    dsn = f"chdb://{tmp_path / 'store'}"
    assert "applied 0001" in run("migrate", "--dsn", dsn).stdout
    assert "schema is current" in run("migrate", "--dsn", dsn).stdout
    newer = (
        "from clickhouse.connection import Connection; import sys; s = Connection(sys.argv[1]); "
        "s.insert('schema_history', ['version', 'name'], [[9999], ['from_the_future']])"
    )
    subprocess.run([sys.executable, "-c", newer, dsn], cwd=ROOT, check=True)
    for command in (("migrate",), ("verify",), SERVE + TRUST):
        ended = run(*command, "--dsn", dsn)
        assert ended.returncode == 2
        assert "the store has schema 9999" in ended.stderr


def test_one_process_an_embedded_store(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        ended = run("verify", "--dsn", service.dsn)
        assert ended.returncode == 2
        assert "another process has this embedded store open" in ended.stderr


def test_sigterm_finishes_requests_and_stores_their_events(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        answers: list[int] = []

        def post(part: int) -> None:
            for number in range(20):
                rows = [row | {"event_id": f"{part}-{number}-{row['event_id']}"} for row in events(5)]
                try:
                    status, _ = service.post(rows)
                except OSError:
                    return
                if status == 200:
                    answers.append(len(rows))

        threads = [threading.Thread(target=post, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) > 5, 30)
        assert service.stop() == 0
        for thread in threads:
            thread.join()
        service.start()
        _, trend = service.get("/api/v1/analytics/tokens?days=2", "org-a")
        assert sum(day["count"] for day in trend["data"]) >= sum(answers)


def test_a_bad_body_changes_nothing_and_the_process_lives(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        headers = {"Authorization": f"Bearer {INGEST_TOKEN}", "Content-Type": "application/json"}
        url = service.url + "/api/v1/events"
        bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
        for body, extra, expected in (
            (b"{not json", {}, 400),
            (b"[" + b" " * (10 * 1024 * 1024 - 1) + b"]", {}, 413),
            (bomb, {"Content-Encoding": "gzip"}, 413),
            (b"\xff\xfe", {}, 400),
            (b"[" * 100_000, {}, 400),
            (b"[{}]", {}, 400),
        ):
            status, _, answer = request("POST", url, headers | extra, body)
            assert status == expected, answer[:300]
            assert set(json.loads(answer)) <= {"code", "message", "details"}
        status, answer = service.post([*events(1), {"event_id": "x"}])
        assert status == 200
        assert answer["accepted"] == 1
        assert {entry["index"] for entry in answer["rejected"]} == {1}
        assert service.get("/api/v1/analytics/tokens?days=1", "org-a")[1]["data"][0]["count"] == 1
        assert service.post(events(1)[0] | {"events": "an unknown field"}) == (200, {"accepted": 1, "rejected": []})


def start_demo(directory: Path, port: int, metrics_port: int) -> subprocess.Popen[bytes]:
    listen = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"]
    with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "agentidp_analytics", "demo", *listen, "--refresh-interval", "0.5s"],
            cwd=directory, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=err,
        )  # fmt: skip


def test_a_demo_beside_a_running_demo_leaves_it_alone(tmp_path: Path) -> None:
    first, elsewhere = tmp_path / "first", tmp_path / "elsewhere"
    first.mkdir()
    elsewhere.mkdir()
    port, metrics_port = free_port(), free_port()
    demo = start_demo(first, port, metrics_port)
    try:
        wait_for(lambda: "Ctrl-C" in (first / "out").read_text(), 60, (first / "err").read_text)
        token = re.search(r"^export TOKEN=(\S+)$", (first / "out").read_text(), re.MULTILINE)
        assert token is not None

        def count() -> int:
            url = f"http://127.0.0.1:{port}/api/v1/analytics/tokens?days=90"
            status, _, body = request("GET", url, {"Authorization": f"Bearer {token[1]}"})
            assert status == 200
            return sum(day["count"] for day in json.loads(body)["data"])

        before = count()
        for directory, ports in (
            (first, (port, metrics_port)),
            (first, (free_port(), free_port())),
            (elsewhere, (port, metrics_port)),
            (elsewhere, (free_port(), metrics_port)),
        ):
            listen = ("--listen", f"127.0.0.1:{ports[0]}", "--metrics-listen", f"127.0.0.1:{ports[1]}")
            ended = run("demo", *listen, cwd=directory, PYTHONPATH=str(ROOT))
            assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
            assert count() >= before
        assert list(elsewhere.iterdir()) == []
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0, (first / "err").read_text()


def test_the_demo_shows_its_stories_with_the_printed_lines(tmp_path: Path) -> None:
    port, metrics_port = free_port(), free_port()
    demo = start_demo(tmp_path, port, metrics_port)
    try:
        wait_for(lambda: "Ctrl-C" in (tmp_path / "out").read_text(), 60, (tmp_path / "err").read_text)
        text = (tmp_path / "out").read_text()
        export = re.search(r"^export TOKEN=\S+$", text, re.MULTILINE)
        assert export is not None
        curls = [line for line in text.splitlines() if line.startswith("curl ")]
        assert len(curls) == 3

        def call(line: str, token: str = "") -> Any:
            setting = f"export TOKEN={token}" if token else export[0]
            done = subprocess.run(["bash", "-c", f"{setting}\n{line}"], capture_output=True, check=True)
            return json.loads(done.stdout)

        trend, activity, agents = (call(line) for line in curls)
        assert list(trend) == ["tenantId", "days", "data"]
        assert list(trend["data"][0]) == ["date", "count"]
        assert list(activity) == ["tenantId", "data"]
        assert list(activity["data"][0]) == ["dow", "hour", "count"]
        assert list(agents) == ["tenantId", "month", "data"]
        assert list(agents["data"][0]) == ["agentId", "tokenCount"]
        counts = sorted(day["count"] for day in trend["data"])
        assert counts[-1] > 2.5 * counts[-2], "the retry loop must stand out"

        another = re.search(r"for another tenant: (.* token --tenant )NAME", text)
        assert another is not None
        typed = subprocess.run(
            ["bash", "-c", f"{another[1]} org-umbrella"], cwd=tmp_path, capture_output=True, check=True,
            env=clean_environment() | {"PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip
        silent = typed.stdout.strip()
        quiet = call(curls[0], silent)["data"]
        assert [day["count"] for day in quiet[-3:]] == [0, 0, 0]
        assert sum(day["count"] for day in quiet[:-5]) > 0

        _, _, body = request("GET", f"http://127.0.0.1:{metrics_port}/metrics", {})
        counter = re.search(r'tokens_issued_total{tenant_id="org-umbrella"} (\d+)', body.decode())
        assert counter is not None
        whole = call(curls[0].replace("days=30", "days=90"), silent)["data"]
        assert int(counter[1]) == sum(day["count"] for day in whole)
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0, (tmp_path / "err").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_the_wheel_works_away_from_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    # The dependencies of this environment as plain files: not the project itself, whose .pth is not read there.
    dependencies = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    where = "import clickhouse, query_api, exporter, agentidp_analytics as a; print(a.__file__, exporter.__file__)"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.count(str(site)) == 2, found
    command = tmp_path / "venv" / "bin" / "agentidp-analytics"
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(
            [command, "serve", *TRUST, "--listen", f"127.0.0.1:{port}", "--metrics-listen", "127.0.0.1:0"],
            cwd=tmp_path, env=clean_environment(), stderr=log, stdout=log,
        )  # fmt: skip
    try:

        def is_ready() -> bool:
            try:
                return request("GET", f"http://127.0.0.1:{port}/readyz", {})[0] == 200
            except OSError:
                return False

        wait_for(is_ready, 60, (tmp_path / "log").read_text)
        assert (tmp_path / "data").is_dir(), "the default store is in the working directory"
    finally:
        serving.terminate()
        assert serving.wait(30) == 0


def test_a_mistyped_store_is_neither_made_nor_found_in_order(tmp_path: Path) -> None:
    for command in (["verify"], ["export"], ["erase", "--tenant", "org-a"]):
        ended = run(*command, "--dsn", f"chdb://{tmp_path / 'typo'}")
        assert (ended.returncode, "does not exist" in ended.stderr) == (2, True), ended.stderr
    assert not (tmp_path / "typo").exists()


def every_command(tmp_path: Path) -> list[list[str]]:
    """Each command that opens the store, without its --dsn."""
    (tmp_path / "a.ndjson").write_bytes(ndjson(events(1)))
    ingest = ["ingest", str(tmp_path / "a.ndjson")]
    return [[*SERVE, *TRUST], ["migrate"], ingest, ["export"], ["verify"], ["erase", "--tenant", "org-a"]]


def content(directory: Path) -> list[tuple[str, bytes | None]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in directory.rglob("*"))


def test_a_directory_that_is_no_store_is_left_as_it_was(tmp_path: Path) -> None:
    photos, nothing = tmp_path / "photos", tmp_path / "nothing"
    (photos / "tmp").mkdir(parents=True)
    (photos / "one.jpg").write_bytes(b"jpg")
    nothing.mkdir()
    before = content(photos)
    for command in every_command(tmp_path):
        for directory in (photos, nothing) if command[0] in ("export", "verify", "erase") else (photos,):
            ended = run(*command, "--dsn", f"chdb://{directory}")
            assert (ended.returncode, "is no store" in ended.stderr) == (2, True), (command, ended.stderr)
    assert content(photos) == before
    assert not list(nothing.iterdir())


def test_a_copy_whose_links_were_followed_is_told_by_every_command(tmp_path: Path) -> None:
    assert run("migrate", "--dsn", f"chdb://{tmp_path / 'store'}").returncode == 0
    subprocess.run(["cp", "-rL", tmp_path / "store", tmp_path / "copy"], check=True)
    before = content(tmp_path / "copy")
    for command in every_command(tmp_path):
        ended = run(*command, "--dsn", f"chdb://{tmp_path / 'copy'}")
        assert (ended.returncode, "symbolic links were followed" in ended.stderr) == (2, True), (command, ended.stderr)
    assert content(tmp_path / "copy") == before


@pytest.mark.parametrize("option", ["--tls-cert={0} --tls-key={0}", "--ingest-token-file={0}", "--web-config-file={0}"])
def test_a_wrong_file_is_found_before_a_store_is_made(tmp_path: Path, option: str) -> None:
    (tmp_path / "wrong").write_text("[not: what it should be")
    given = option.format(tmp_path / "wrong").split()
    ended = run(*SERVE, *TRUST, *given, "--dsn", f"chdb://{tmp_path / 'store'}")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "store").exists()


def test_a_mistyped_database_is_not_made(tmp_path: Path, bridge: Bridge) -> None:
    (tmp_path / "a.ndjson").write_bytes(ndjson(events(1)))
    for command in (["verify"], ["export"], ["ingest", str(tmp_path / "a.ndjson")], [*SERVE, *TRUST]):
        ended = run(*command, "--dsn", bridge.dsn_of("typo"))
        assert (ended.returncode, "there is no such database" in ended.stderr) == (2, True), ended.stderr
    connection = Connection(bridge.dsn)
    assert connection.rows("SELECT count() FROM system.databases WHERE name = 'typo'") == [(0,)]
    connection.close()


def test_rejects_never_overwrite_the_input_and_keep_every_byte(tmp_path: Path) -> None:
    source, link = tmp_path / "in.ndjson", tmp_path / "link.ndjson"
    twice = ndjson(events(1)).replace(b'"agent_id"', b'"agent_id": "other", "agent_id"')
    source.write_bytes(b"\xff\n" + twice)
    link.symlink_to(source)
    dsn = f"chdb://{tmp_path / 'store'}"
    ended = run("ingest", "--dsn", dsn, "--rejects", str(link), str(source))
    assert (ended.returncode, "--rejects" in ended.stderr) == (2, True)
    assert source.stat().st_size > 0
    rejects = tmp_path / "rejects"
    assert run("ingest", "--dsn", dsn, "--rejects", str(rejects), str(source)).returncode == 1
    kept = [json.loads(line)["text"] for line in rejects.read_text().splitlines()]
    assert [text.encode("utf-8", "surrogateescape") for text in kept] == [b"\xff", twice.rstrip()]


def test_output_that_cannot_be_written_ends_with_a_line(tmp_path: Path) -> None:
    source, dsn = tmp_path / "in.ndjson", f"chdb://{tmp_path / 'store'}"
    source.write_bytes(ndjson(events(2_000)) + b"{}\n")
    ended = run("ingest", "--dsn", dsn, "--rejects", "/dev/full", str(source))
    assert (ended.returncode, "--rejects /dev/full cannot be written: No space left" in ended.stderr) == (1, True)
    assert "Traceback" not in ended.stderr
    command = [sys.executable, "-m", "agentidp_analytics", "export", "--dsn", dsn]
    with Path("/dev/full").open("wb") as full:
        full_disk = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=clean_environment(), check=False)
    assert full_disk.returncode == 1
    assert full_disk.stderr == b"agentidp-analytics: standard output cannot be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    cut_off = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=clean_environment(), check=False)
    os.close(writer)
    assert (cut_off.returncode, cut_off.stderr) == (1, b"")


def test_a_range_beyond_all_days_is_cut_to_those_that_there_are(tmp_path: Path) -> None:
    source, dsn = tmp_path / "in.ndjson", f"chdb://{tmp_path / 'store'}"
    source.write_bytes(ndjson(events(3)))
    assert run("ingest", "--dsn", dsn, str(source)).returncode == 0
    whole = run("verify", "--dsn", dsn)
    assert whole.returncode == 0
    ended = run("verify", "--dsn", dsn, "--since", "1900-01-01", "--until", "9999-12-31")
    assert (ended.returncode, ended.stdout) == (0, whole.stdout), ended.stderr
    nothing = run("verify", "--dsn", dsn, "--since", "2300-01-01")
    assert (nothing.returncode, nothing.stdout) == (0, "0 days compared: 0 differences, 0 conflicting event ids\n")
    turned = run("verify", "--dsn", dsn, "--since", "2026-02-01", "--until", "2026-01-31")
    assert (turned.returncode, "--since 2026-02-01 is after --until 2026-01-31" in turned.stderr) == (2, True)


def test_an_agent_that_no_event_can_name_is_refused_before_anything_is_erased(tmp_path: Path) -> None:
    ended = run("erase", "--dsn", f"chdb://{tmp_path / 'store'}", "--tenant", "org-a", "--agent", "\udcff")
    assert (ended.returncode, "--agent '\\udcff' is not UTF-8" in ended.stderr) == (2, True), ended.stderr


def test_several_zst_frames_in_a_file_are_all_read(tmp_path: Path) -> None:
    frames = b"".join(zstd.compress(ndjson(events(20, f"org-{number}"))) for number in range(3))
    (tmp_path / "frames.ndjson.zst").write_bytes(frames)
    assert (
        "accepted 60"
        in run("ingest", "--dsn", f"chdb://{tmp_path / 'store'}", str(tmp_path / "frames.ndjson.zst")).stdout
    )


def test_a_server_deployment_does_without_the_embedded_engine(tmp_path: Path, bridge: Bridge) -> None:
    without = "import sys; sys.modules['chdb'] = None; import agentidp_analytics.cli; agentidp_analytics.cli.main()"

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", without, *arguments],
            cwd=tmp_path, env=clean_environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    embedded = command("verify", "--dsn", f"chdb://{tmp_path}")
    assert embedded.returncode == 2
    embedded = command("migrate", "--dsn", f"chdb://{tmp_path / 'store'}")
    assert (embedded.returncode, "agentidp-analytics[embedded]" in embedded.stderr) == (2, True), embedded.stderr
    dsn = bridge.dsn_of("without_engine")
    (tmp_path / "events").write_bytes(ndjson(events(10)))
    for arguments in (("migrate",), ("ingest", "events"), ("verify",)):
        ended = command(arguments[0], "--dsn", dsn, *arguments[1:])
        assert ended.returncode == 0, ended.stderr


def test_without_a_command_there_is_help() -> None:
    ended = run()
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) > 10
