"""Connections never take the file descriptors that the store writes with."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentidp_analytics.service import OTHER_FILES
from exporter.runner import MAX_CONNECTIONS
from query_api.settings import Limits
from tests.support.service import ROOT, Service, request, wait_for

CONNECTIONS = MAX_CONNECTIONS + Limits().connections
NEEDED = CONNECTIONS + OTHER_FILES


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """Lets this process be the client of all of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * NEEDED), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def works(service: Service, number: int) -> None:
    """An event is taken, counted and shown."""
    event = {"event_id": f"e{number}", "tenant_id": "org-1", "agent_id": "a", "issued_at": int(time.time())}
    assert service.post(event)[0] == 200
    status, trend = service.get("/api/v1/analytics/tokens?days=2", "org-1")
    assert (status, sum(day["count"] for day in trend["data"])) == (200, number)
    assert request("GET", service.metrics_url + "/metrics", {})[0] == 200
    wait_for(lambda: service.samples("agentidp_tenant_month_tokens").get("org-1") == number, 30)


@pytest.mark.usefixtures("many_open_files")
def test_idle_connections_to_both_listeners_stop_nothing(tmp_path: Path) -> None:
    options = ("--refresh-interval", "1s", "--zero-hold", "0s")
    with Service(tmp_path, *options, open_files=f"256:{NEEDED}") as service:
        works(service, 1)
        with ExitStack() as idle:
            for port, limit in ((service.port, Limits().connections), (service.metrics_port, MAX_CONNECTIONS)):
                for _ in range(2 * limit):
                    idle.enter_context(socket.create_connection(("127.0.0.1", port)))
            works(service, 2)
            assert len(list(Path(f"/proc/{service.pid}/fd").iterdir())) < NEEDED
        works(service, 3)
        assert "out of system resource" not in service.log()
        assert service.value("agentidp_analytics_http_connections_refused_total") >= Limits().connections


def test_the_listeners_go_on_after_a_time_without_file_descriptors(tmp_path: Path) -> None:
    with Service(tmp_path, "--refresh-interval", "1s", "--zero-hold", "0s") as service:
        works(service, 1)
        usual = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (10, usual[1]))
        ports = (service.port, service.metrics_port)
        waiting = [socket.create_connection(("127.0.0.1", port)) for port in ports]
        wait_for(lambda: service.log().count("out of system resource") >= len(ports), 30, service.log)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, usual)
        works(service, 2)
        for connection in waiting:
            connection.close()


def test_too_few_open_files_stop_the_start_before_there_is_a_store(tmp_path: Path) -> None:
    service = Service(tmp_path, open_files=f"{NEEDED - 1}:{NEEDED - 1}")
    service.start(wait=False)
    assert service.ended() == 2
    assert service.log().count("\n") == 1
    assert f"the limit of open files (ulimit -Hn) is {NEEDED - 1}" in service.log()
    assert f"LimitNOFILE={NEEDED}" in service.log()
    assert not (tmp_path / "store").exists()
    service.__exit__(None, None, None)


def test_both_faces_accept_connections_by_the_same_rules() -> None:
    """The faces do not know each other, and nothing below them may know HTTP: so the file is there twice, as one."""
    files = [ROOT / "exporter" / "listening.py", ROOT / "query_api" / "http" / "listening.py"]
    assert files[0].read_text() == files[1].read_text()
