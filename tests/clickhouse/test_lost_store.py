"""A store that is taken away from under a running service: what cannot be kept is not answered 200."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.service import Service, request, wait_for


def post(service: Service, serial: str) -> tuple[int, str]:
    event = {"event_id": serial, "tenant_id": "org-a", "agent_id": "a", "issued_at": datetime.now(UTC).isoformat()}
    status, body = service.post(event)
    return status, body.get("code", "")


def is_ready(service: Service) -> bool:
    return request("GET", service.url + "/readyz", {})[0] == 200


def remove(connection: Path) -> None:
    shutil.rmtree(connection)


def empty(connection: Path) -> None:
    for entry in connection.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def replace_by_its_copy(connection: Path) -> None:
    subprocess.run(["cp", "-a", connection, connection.with_name("copy")], check=True)
    connection.rename(connection.with_name("original"))
    connection.with_name("copy").rename(connection)


def move_away(connection: Path) -> None:
    connection.rename(connection.with_name("moved"))


def remove_the_data(connection: Path) -> None:
    shutil.rmtree(connection / "store")


def remove_the_events(connection: Path) -> None:
    shutil.rmtree((connection / "data" / "default" / "events").resolve())


def remove_the_tables_definitions(connection: Path) -> None:
    shutil.rmtree(connection / "metadata")


WAYS = [
    remove, empty, replace_by_its_copy, move_away, remove_the_data, remove_the_events, remove_the_tables_definitions,
]  # fmt: skip


@pytest.mark.parametrize("take_away", WAYS, ids=lambda way: way.__name__)
def test_a_store_that_is_gone_takes_no_events(tmp_path: Path, take_away: Callable[[Path], None]) -> None:
    with Service(tmp_path) as service:
        assert post(service, "before") == (200, "")
        take_away(tmp_path / "store")
        assert post(service, "after") == (503, "UNAVAILABLE")
        wait_for(lambda: not is_ready(service), 10, service.log)
        assert service.get("/api/v1/analytics/tokens", "org-a")[0] == 503
        assert request("GET", service.url + "/healthz", {})[0] == 200
        assert "removed or replaced while it was open" in service.log()


def test_a_store_that_comes_back_is_taken_up_by_the_next_start(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        assert post(service, "before") == (200, "")
        move_away(tmp_path / "store")
        assert post(service, "while away")[0] == 503
        shutil.rmtree(tmp_path / "store", ignore_errors=True)  # what the engine may have made anew
        (tmp_path / "moved").rename(tmp_path / "store")
        assert post(service, "back")[0] == 503  # the engine no longer knows what of its data is on the disk
        service.kill()
        service.start()
        assert post(service, "after") == (200, "")
        _, body = service.get("/api/v1/analytics/tokens?days=2", "org-a")
        assert sum(day["count"] for day in body["data"]) >= 2


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a directory read-only, as a file system does after an error; undone at the end."""
    done: list[Path] = []

    def freeze(path: Path) -> None:
        subprocess.run(["mount", "--bind", path, path], check=True)
        done.append(path)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)

    yield freeze
    for path in done:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_store_that_turns_read_only_takes_no_events(tmp_path: Path, frozen: Callable[[Path], None]) -> None:
    with Service(tmp_path) as service:
        assert post(service, "before") == (200, "")
        frozen(tmp_path / "store")
        for number in range(3):
            assert post(service, f"after-{number}") == (503, "UNAVAILABLE")
        status, body = service.get("/api/v1/analytics/tokens?days=2", "org-a")
        assert (status, sum(day["count"] for day in body["data"])) == (200, 1)
