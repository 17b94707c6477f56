"""A disk that fills up: senders are told to come back, nothing answered is lost, and space heals it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.service import Service, wait_for


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    assert os.geteuid() == 0, (
        "only root can mount the small disk that this needs: run `sudo make test`, or in a container"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    return ballast


def events(first: int, count: int) -> list[dict[str, object]]:
    now = datetime.now(UTC).isoformat()
    return [
        {"event_id": f"e{number}", "tenant_id": "org-a", "agent_id": "a", "issued_at": now, "user_agent": "x" * 2000}
        for number in range(first, first + count)
    ]


def count(service: Service) -> int:
    status, body = service.get("/api/v1/analytics/tokens?days=2", "org-a")
    assert status == 200, body
    return sum(day["count"] for day in body["data"])


def test_a_full_disk_is_told_and_space_heals_it(tmp_path: Path, small_disk: Path) -> None:
    with Service(tmp_path, dsn=f"chdb://{small_disk / 'store'}") as service:
        assert service.post(events(0, 10))[0] == 200
        ballast = fill(small_disk)
        answered, first_refused = 10, 0
        for number in range(10, 400, 10):
            status, body = service.post(events(number, 10))
            if status != 200:
                first_refused = number
                break
            answered += 10
        assert first_refused, "the disk never filled up"
        assert (status, body["code"]) == (503, "UNAVAILABLE")
        ballast.unlink()
        wait_for(lambda: service.post(events(first_refused, 10))[0] == 200, 30, service.log)
        answered += 10
        assert count(service) == answered

        ballast = fill(small_disk)
        service.kill()
        ballast.unlink()
        service.start()
        assert count(service) == answered
        assert service.post(events(5000, 10))[0] == 200
        assert count(service) == answered + 10
