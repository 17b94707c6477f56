"""What docs/operations.md says about running: its systemd unit, its nginx, and Prometheus' pages in the README."""

from __future__ import annotations

import errno
import gzip
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from agentidp_analytics import cli
from query_api.settings import Limits
from tests.seccomp import confined
from tests.support.prometheus_server import EXAMPLE_CONFIG, prometheus
from tests.support.promql_names import rule_list
from tests.support.service import INGEST_TOKEN, ROOT, Service, free_port, request, wait_for

README: Final = (ROOT / "README.md").read_text()
OPERATIONS: Final = (ROOT / "docs" / "operations.md").read_text()
SIGNED_TOKEN: Final = "ingest-token-of-the-webhook"
SIGNING_SECRET: Final = "signing-secret-of-the-webhook"
MAX_BODY: Final = Limits().body_bytes
UNIT: Final = ROOT / "docs" / "agentidp-analytics.service"
# What is refused to a process under the unit's filters, each as the number of the error it gets.
REFUSED: Final = """
import os, socket
def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno
print([
    refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    refused(lambda: os.chroot("/")),
    refused(lambda: socket.socket(socket.AF_INET6)),
])
"""


def directives(text: str) -> dict[str, list[str]]:
    """Directive -> its values in order, of all sections of a unit."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def event(name: str) -> dict[str, Any]:
    return {"event_id": name, "tenant_id": "org-acme", "agent_id": "operations", "issued_at": time.time()}


def tokens_today(service: Service) -> int:
    status, body = service.get("/api/v1/analytics/tokens?days=1", "org-acme")
    assert status == 200, body
    return int(body["data"][0]["count"])


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", UNIT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The program is not installed where the tests run.
    unit = UNIT.read_text()
    program = directives(unit)["ExecStart"][0].split()[0]
    copy = tmp_path / UNIT.name
    copy.write_text(unit.replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_settings_file_of_the_unit_names_settings_of_serve() -> None:
    content = next(text for text in re.findall(r"^```ini\n(.*?)^```", OPERATIONS, re.MULTILINE | re.DOTALL))
    environment = directives(content)
    known = {parameter.envvar for parameter in cli.cli.commands["serve"].params}
    assert {"AGENTIDP_ANALYTICS_ISSUER", "AGENTIDP_ANALYTICS_JWKS_URL"} <= set(environment) <= known
    unit = directives(UNIT.read_text())
    names = {value.partition("=")[0] for value in unit["Environment"]}
    assert names == {"AGENTIDP_ANALYTICS_DSN"}
    assert f"/var/lib/{unit['StateDirectory'][0]}/" in unit["Environment"][0]


def test_the_service_does_all_its_work_under_the_filters_of_the_unit(tmp_path: Path) -> None:
    unit = directives(UNIT.read_text())
    probe = [sys.executable, "-c", REFUSED]
    done = confined(unit, lambda: subprocess.run(probe, capture_output=True, text=True, check=True))
    assert done.stdout.strip() == str([errno.EAFNOSUPPORT, errno.EPERM, None])
    service = Service(tmp_path, "--refresh-interval", "0.2s", "--retention-days", "90")
    with ExitStack() as stack:
        stack.push(service)
        confined(unit, service.start)
        for number in range(1, 11):
            assert service.post([event(f"{number}"), event(f"again-{number}")]) == (
                200,
                {"accepted": 2, "rejected": []},
            )
            assert tokens_today(service) == 2 * number
            for question in ("agents", "agents/activity?days=30"):
                assert service.get(f"/api/v1/analytics/{question}", "org-acme")[0] == 200
        assert service.stop() == 0
        confined(unit, service.start)
        assert tokens_today(service) == 20
        assert service.stop() == 0
        assert "Traceback" not in service.log()


def test_the_unit_may_not_deny_new_code_because_the_engine_compiles(tmp_path: Path) -> None:
    unit = directives(UNIT.read_text())
    assert "MemoryDenyWriteExecute" not in unit
    service = Service(tmp_path)
    with ExitStack() as stack:
        stack.push(service)
        with pytest.raises(RuntimeError, match="CANNOT_MPROTECT"):
            confined(unit | {"MemoryDenyWriteExecute": ["yes"]}, service.start)


@contextmanager
def nginx(directory: Path, locations: str) -> Iterator[str]:
    """The URL of a real nginx with these locations until the block is left."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert program is not None, "nginx is not installed: apt-get install --no-install-recommends nginx-light"
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    server = f"server {{\nlisten 127.0.0.1:{port};\n{locations}}}\n"
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{server}}}\n"
    )
    log = directory / "nginx.log"
    process = subprocess.Popen([program, "-p", directory, "-e", log, "-c", configuration])

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return request("GET", f"http://127.0.0.1:{port}/none", {})[0] == 404
        except OSError:
            return False

    try:
        wait_for(answers, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_the_documented_nginx_passes_on_what_it_has_to(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```nginx\n(.*?)^```", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert "127.0.0.1:3000" in block
    service = Service(tmp_path)
    service.token_file.write_text(f"{INGEST_TOKEN}\n{SIGNED_TOKEN} name=webhook hmac={SIGNING_SECRET}\n")
    with service, nginx(tmp_path, block.replace(":3000", f":{service.port}")) as url:
        for path in ("/healthz", "/readyz", "/openapi.json"):
            status, _, body = request("GET", url + path, {})
            assert (status, body) == (200, request("GET", service.url + path, {})[2]), path
        for path in ("/", "/metrics", "/healthz/x", "/openapiXjson"):
            assert request("GET", url + path, {})[0] == 404, path

        body = gzip.compress(json.dumps([event("1"), event("2")]).encode(), mtime=0)
        now = str(int(time.time()))
        signature = hmac.new(SIGNING_SECRET.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
        headers = {
            "Authorization": f"Bearer {SIGNED_TOKEN}",
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
            "X-AgentIdP-Signature": f"t={now},v1={signature}",
            "X-Request-Id": "of-a-stranger",
        }
        status, answered, answer = request("POST", url + "/api/v1/events", headers, body)
        assert (status, json.loads(answer)) == (200, {"accepted": 2, "rejected": []})
        assert re.fullmatch(r"[0-9a-f]{32}", answered["X-Request-Id"])

        question = {"Authorization": f"Bearer {service.token('org-acme')}"}
        status, _, answer = request("GET", url + "/api/v1/analytics/tokens?days=1", question)
        assert (status, json.loads(answer)["data"][0]["count"]) == (200, 2)


def test_the_documented_nginx_lets_the_largest_body_through_and_no_more_than_it_must(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```nginx\n(.*?)^```", OPERATIONS, re.MULTILINE | re.DOTALL)
    headers = {"Authorization": f"Bearer {INGEST_TOKEN}", "Content-Type": "application/x-ndjson"}
    lines = [json.dumps(event(str(number))) for number in range(20)]
    largest = "".join(line + " " * (MAX_BODY // 20 - len(line) - 1) + "\n" for line in lines).encode()
    assert len(largest) == MAX_BODY
    with Service(tmp_path) as service, nginx(tmp_path, block.replace(":3000", f":{service.port}")) as url:
        status, _, answer = request("POST", url + "/api/v1/events", headers, largest)
        assert (status, json.loads(answer)) == (200, {"accepted": 20, "rejected": []})
        # Of the service, which says why.
        status, _, answer = request("POST", url + "/api/v1/events", headers, largest + b"\n")
        assert (status, json.loads(answer)["code"]) == (413, "PAYLOAD_TOO_LARGE")
        # Of nginx, which keeps it away from the service.
        status, _, answer = request("POST", url + "/api/v1/events", headers, largest + b"\n" * (1 << 20))
        assert status == 413
        assert b"nginx" in answer


def test_the_pages_of_prometheus_that_the_readme_names_work_in_the_installed_one(tmp_path: Path) -> None:
    section = README.partition("## Prometheus and Grafana")[2].partition("\n## ")[0]
    (start,) = re.findall(r"Open <http://127\.0\.0\.1:9091(/[\w/]*)>", section)
    graph, alerts = re.findall(r"`(/classic/\w+)`", section)
    assert "--web.listen-address=127.0.0.1:9091" in section
    names = {rule["alert"] for rule in rule_list() if "alert" in rule}
    with prometheus(EXAMPLE_CONFIG, tmp_path / "data") as server:
        with urlopen(server.base_url + start) as answer:
            page = answer.read().decode()
            assert urlsplit(answer.url).path == graph
        scripts = re.findall(r'<script src="([^"]+)"', page)
        assert any("graph/index.js" in script for script in scripts)
        for script in scripts:
            assert urlopen(server.base_url + script).status == 200
        assert f'href="{alerts}"' in page
        listed = urlopen(server.base_url + alerts).read().decode()
        assert {name for name in names if name in listed} == names
