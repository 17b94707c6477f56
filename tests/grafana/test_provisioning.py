"""The files that Grafana reads at start, and that they agree with the example configuration of Prometheus."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.support.grafana_panels import SCRAPE_SECONDS
from tests.support.prometheus_server import EXAMPLE_CONFIG, ROOT

GRAFANA = ROOT / "grafana"
README = (GRAFANA / "README.md").read_text()


def only_file(folder: str) -> dict[str, Any]:
    (path,) = (GRAFANA / "provisioning" / folder).iterdir()
    assert path.suffix == ".yaml"  # Grafana passes over other endings without a word
    return dict(yaml.safe_load(path.read_text()))


def test_datasource_takes_its_address_from_the_environment() -> None:
    content = only_file("datasources")
    assert content["apiVersion"] == 1
    (source,) = content["datasources"]
    variable = re.fullmatch(r"\$(\w+)", source["url"])
    assert variable
    assert variable[1] in README


def test_intervals_are_the_same_everywhere() -> None:
    (source,) = only_file("datasources")["datasources"]
    config = yaml.safe_load(EXAMPLE_CONFIG.read_text())
    interval = f"{SCRAPE_SECONDS}s"
    assert source["jsonData"]["timeInterval"] == interval
    assert {job["scrape_interval"] for job in config["scrape_configs"]} == {interval}


def test_dashboards_are_provided_read_only_from_the_documented_folder() -> None:
    content = only_file("dashboards")
    assert content["apiVersion"] == 1
    (provider,) = content["providers"]
    assert provider["type"] == "file"
    assert not provider["allowUiUpdates"]
    assert provider["options"]["path"] in README
