"""Writes the dashboards in `dashboards/`; with --check only says whether they are what it would write.

    python -m grafana.build [--check]

Exit 1 from --check when a file differs. Edit fleet.py, service.py or tenant.py, never the JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import yaml

from grafana.fleet import fleet
from grafana.tenant import tenant

_HERE: Final = Path(__file__).parent
_DATASOURCE: Final = _HERE / "provisioning" / "datasources" / "agentidp-analytics.yaml"


def dashboards() -> dict[Path, str]:
    """The text of each dashboard file. They name the datasource that is provisioned beside them."""
    source = yaml.safe_load(_DATASOURCE.read_text())["datasources"][0]
    built = {"fleet": fleet(source["uid"], source["name"]), "tenant": tenant(source["uid"], source["name"])}
    return {
        _HERE / "dashboards" / f"{name}.json": json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"
        for name, dashboard in built.items()
    }


def main(arguments: list[str]) -> int:
    """Writes or checks; returns the exit status."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m grafana.build [--check]\n")
        return 2
    status = 0
    for path, text in dashboards().items():
        if path.exists() and path.read_text() == text:
            continue
        if arguments:
            sys.stderr.write(f"{path} is not what grafana.build makes: run python -m grafana.build\n")
            status = 1
        else:
            path.write_text(text)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
