"""The documentation against the thing: what it names exists, what exists is in it, and its examples run."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

from agentidp_analytics.cli import cli
from agentidp_analytics.service import OTHER_FILES
from clickhouse.event import EventRejectedError, parse_event
from exporter.families import FAMILIES
from exporter.runner import MAX_CONNECTIONS
from exporter.web_settings import read_web_settings
from query_api.auth.bearer_token import Reason
from query_api.http.errors import STATUS_OF_CODE
from query_api.openapi import openapi_document
from query_api.settings import ApiSettings, Limits
from tests.support.promql_names import COMING, OF_THE_PROCESS, published_names
from tests.support.service import INGEST_TOKEN, ROOT, Service, clean_environment, request

README: Final = (ROOT / "README.md").read_text()
CONFIGURATION: Final = (ROOT / "docs" / "configuration.md").read_text()
EVENTS: Final = (ROOT / "docs" / "events.md").read_text()
OPERATIONS: Final = (ROOT / "docs" / "operations.md").read_text()
PAGES: Final = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Commands that runbooks name and that do not exist yet, with their options. A test fails for each that exists: take it
# out then.
COMING_COMMANDS: Final[dict[str, set[str]]] = {}
# Not metrics: external labels that the rules read.
EXTERNAL_LABELS: Final = {"agentidp_runbooks", "agentidp_grafana"}
EVERYTHING: Final = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
ROOMS: Final = ("clickhouse", "query_api", "exporter", "grafana", "tests", "docs", "bench", ".ci")
KEYS: Final = {
    "tokens": (["tenantId", "days", "data"], ["date", "count"]),
    "agents/activity": (["tenantId", "data"], ["dow", "hour", "count"]),
    "agents": (["tenantId", "month", "data"], ["agentId", "tokenCount"]),
}
SEPARATOR: Final = "--8<--"


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documented_options() -> dict[tuple[str, str], list[str]]:
    """(command, option) -> row of docs/configuration.md; a section says which commands its table is for."""
    found: dict[tuple[str, str], list[str]] = {}
    for part in re.split(r"^(?=Commands: )", CONFIGURATION, flags=re.MULTILINE)[1:]:
        commands = re.findall(r"`(\w+)`", part.partition("\n")[0])
        for row in rows(part.partition("\n## ")[0]):
            if row[0].startswith("`--"):
                found |= {(command, row[0].strip("`")): row for command in commands}
    for command, option in re.findall(r"`(\w+)` also takes `(--[a-z-]+)`", CONFIGURATION):
        found[command, option] = found["serve", option]
    return found


def documented_metrics() -> dict[str, tuple[str, set[str]]]:
    """Sample name (of a histogram its base name) -> type, labels."""
    return {
        row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2])))
        for row in rows(CONFIGURATION.partition("## Metrics")[2])
        if row[0].startswith("`agentidp_")
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), "--refresh-interval", "0.2s") as service:
        yield service


def run_blocks(service: Service, scripts: list[str], **environment: str) -> list[str]:
    """Runs shell blocks one after the other in one shell, in the service's directory; what each wrote."""
    script = f"\nprintf '%s' '{SEPARATOR}'\n".join(["set -eu", *scripts])
    paths = {"PATH": f"{Path(sys.executable).parent}:{clean_environment()['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=service.directory,
        env=clean_environment() | paths | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split(SEPARATOR)[1:]


def test_every_option_of_every_command_is_in_the_configuration_with_its_variable_and_default() -> None:
    documented = documented_options()
    real = {
        (name, option.opts[0]): option
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert set(documented) == set(real)
    for key, option in real.items():
        row = documented[key]
        assert row[1] == (f"`{option.envvar}`" if option.envvar else "none"), key
        default = option.show_default if isinstance(option.show_default, str) else option.default
        if option.is_flag:
            assert row[2] == "off", key
        elif option.required:
            assert row[2] == "required", key
        elif isinstance(default, (str, int)):
            assert row[2] == f"`{default}`", key


def test_options_and_commands_that_pages_mention_exist() -> None:
    commands = cli.commands
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    for page, text in EVERYTHING.items():
        for span in code_spans(text):
            match = re.match(r"--[a-z][a-z.-]*", span)
            if match and "." not in match[0]:
                assert match[0] in known, (page, span)
        for language, content in blocks(text):
            for line in content.replace("\\\n", " ").splitlines() if language == "sh" else []:
                for name, rest in re.findall(r"agentidp-analytics ([a-z]+)\b([^|>#]*)", line):
                    if name in COMING_COMMANDS:
                        options = COMING_COMMANDS[name]
                    else:
                        options = {option for parameter in commands[name].params for option in parameter.opts}
                    assert set(re.findall(r"--[a-z-]+", rest)) <= options, (page, line)


def test_what_is_coming_has_not_come() -> None:
    assert COMING & published_names() == set()
    assert set(COMING_COMMANDS) & set(cli.commands) == set()


def test_every_metric_is_documented_with_its_type_and_labels(service: Service) -> None:
    service.post([event("metrics"), {"event_id": "no event"}])
    service.get("/api/v1/analytics/agents", tenant=None)
    _, _, body = request("GET", service.metrics_url + "/metrics", {})
    text = body.decode()
    documented = documented_metrics()
    published = dict(re.findall(r"^# TYPE (agentidp_\w+) (\w+)$", text, re.MULTILINE))
    assert {name: kind for name, (kind, _) in documented.items()} == published
    for name, labels in re.findall(r"^(agentidp_\w+)\{([^}]*)\} ", text, re.MULTILINE):
        base = name if name in documented else re.sub(r"_(bucket|sum|count)$", "", name)
        assert set(re.findall(r"(\w+)=", labels)) - {"le"} == documented[base][1], name
    assert {family.sample_name for family in FAMILIES} <= set(documented)
    histograms = {name for name, (kind, _) in documented.items() if kind == "histogram"}
    suffixed = {name + suffix for name in histograms for suffix in ("_bucket", "_sum", "_count")}
    assert published_names() <= set(documented) - histograms | suffixed


def test_no_page_names_a_metric_that_does_not_exist() -> None:
    documented = documented_metrics()
    known = set(documented) | COMING | OF_THE_PROCESS | EXTERNAL_LABELS | {"agentidp_analytics"}
    for page, text in EVERYTHING.items():
        for name in re.findall(r"(?<![\w/:.*-])(?:[a-z_]+:)?agentidp_\w+(?::\w+)*", text):
            if not name.endswith("_"):
                assert name in known, (page, name)


def test_every_route_is_described() -> None:
    for path, item in openapi_document()["paths"].items():
        for method in set(item) - {"head"}:
            assert f"`{method.upper()} {path}" in CONFIGURATION, path
    for path in ("/metrics", "/-/healthy", "/-/ready", "/"):
        assert f"`GET {path}`" in CONFIGURATION, path
    for path in ("/alerts?days=N&tenant=T", "/agents/detail?tenant=T&agent=ID&days=N"):
        assert f"`GET {path}`" in CONFIGURATION, path


def test_error_codes_reasons_and_limits_are_those_of_the_code() -> None:
    codes = {row[0].strip("`"): row[1] for row in rows(CONFIGURATION) if re.fullmatch(r"`[A-Z_]+`", row[0])}
    assert codes == {code: str(int(status)) for code, status in STATUS_OF_CODE.items()}
    section = CONFIGURATION.partition("The values of `reason`")[2].partition("## ")[0]
    assert {reason.value for reason in Reason} <= set(code_spans(section))
    used = re.findall(r'(?:SignatureError|reason=)\(?"([a-z_]+)"', "".join(source("query_api")))
    for reason in used:
        if reason.startswith(("signature_", "ingest_", "source_")):
            assert f"`{reason}`" in section, reason
    limits, settings = Limits(), ApiSettings()
    assert limits.tenant_requests is not None
    table = {row[0]: row[1] for row in rows(CONFIGURATION.partition("## Limits")[2].partition("## ")[0])}
    for name, values in {
        "requests of one tenant": (limits.tenant_requests.per_second, limits.tenant_requests.burst),
        "queries of one tenant at once; waiting beyond that": (limits.tenant_queries_waiting,),
        "time for a query, waiting included": (int(settings.query_seconds),),
        "body of an ingest request, as sent and as unpacked": (limits.body_bytes,),
        "events in a request; values (commas), objects and arrays in its JSON": (limits.events_per_request,),
        "all bodies in memory; events waiting for the store": (limits.body_bytes_in_flight,),
        "time to send a body; for the store to take it": (int(settings.body_seconds),),
        "requests at once; connections": (limits.requests_in_flight, limits.connections),
        "connections to the exporter": (MAX_CONNECTIONS,),
        "open files (`ulimit -Hn`)": (
            limits.connections + MAX_CONNECTIONS + OTHER_FILES,
            MAX_CONNECTIONS + OTHER_FILES,
        ),
        "idle connection": (int(settings.keepalive_seconds),),
        "time for a client to take an answer": (int(settings.answer_seconds),),
        "drain after SIGTERM": (int(settings.drain_seconds),),
    }.items():
        for value in values:
            assert re.search(rf"(?<![0-9,]){value:,}(?![0-9,])", table[name]), (name, value)


def test_every_link_anchor_and_path_leads_somewhere() -> None:
    for page, text in EVERYTHING.items():
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            path = (folder / name) if name else ROOT / page
            assert path.exists(), (page, target)
            if anchor:
                assert anchor in anchors(path.read_text()), (page, target)
        for span in code_spans(text):
            if re.fullmatch(r"[\w.*-]+(?:/[\w.*-]*)+", span) and span.partition("/")[0] in ROOMS:
                assert any(ROOT.glob(span.rstrip("/"))), (page, span)
            elif re.fullmatch(r"[\w.-]+\.(?:py|md|toml|lock)", span):
                assert (ROOT / span).exists(), (page, span)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_make_target_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = set()
    for text in EVERYTHING.values():
        code = [*code_spans(text), *(content for language, content in blocks(text) if language == "sh")]
        mentioned |= {name for part in code for name in re.findall(r"^make ([a-z]+)", part, re.MULTILINE)}
    assert {"demo", "test", "torture", "bench"} <= mentioned <= targets


def test_the_event_examples_are_events() -> None:
    found = 0
    for language, content in blocks(EVENTS):
        if language == "json" and "event_id" in content:
            parse_event(json.loads(content), int(time.time() * 1000))
            found += 1
    assert found == 1
    example = json.loads(blocks(EVENTS)[1][1])
    table = " ".join(row[0] for row in rows(EVENTS))
    assert all(f"`{name}`" in table for name in example)


def test_every_rejection_code_is_explained() -> None:
    section = EVENTS.partition("## What is refused")[2].partition("## ")[0]
    used = set(
        re.findall(r'(?:_[Rr]efused\(|FieldError\([^,]+, )"([a-z_]+)"', "".join(source("clickhouse", "query_api")))
    )
    assert {"required", "future", "forbidden_tenant"} <= used
    assert {code for code in used if f"`{code}`" not in section} == set()
    with pytest.raises(EventRejectedError):
        parse_event({}, 0)


def test_the_commands_for_events_give_the_answers_shown(service: Service) -> None:
    fenced = [block for block in blocks(EVENTS) if block[0] in ("sh", "json")]
    scripts, answers = [], []
    for number, (language, content) in enumerate(fenced):
        if language == "sh":
            scripts.append(content)
            following = fenced[number + 1]
            answers.append(following[1] if following[0] == "json" and "event_id" not in following[1] else "")
    outputs = run_blocks(service, scripts, URL=service.url)
    assert len(scripts) == 5
    assert sum(map(bool, answers)) == 4
    for script, output, answer in zip(scripts, outputs, answers, strict=True):
        assert (json.loads(output) if answer else output) == (json.loads(answer) if answer else ""), script
    service.token_file.write_text(INGEST_TOKEN + "\n")


def test_the_commands_of_the_readme_work_and_its_answers_have_the_shape_shown(service: Service) -> None:
    service.post([event("readme")])
    (service.directory / "demo-data").mkdir()
    (service.directory / "demo-data" / "ingest-token").write_text(INGEST_TOKEN + "\n")
    fenced = blocks(README)
    shown: dict[str, Any] = {}
    scripts = []
    for number, (language, content) in enumerate(fenced):
        if language == "sh" and content.startswith("curl"):
            scripts.append(content.replace("127.0.0.1:3000", f"127.0.0.1:{service.port}"))
            call = re.search(r"analytics/([a-z/]+)", content)
            if call and fenced[number + 1][0] == "json":
                shown[call[1]] = json.loads(fenced[number + 1][1].replace(",…", ""))
    *calls, picture, sending = run_blocks(service, scripts, TOKEN=service.token("org-acme"))
    assert list(shown) == list(KEYS)
    for example, output, (keys, row_keys) in zip(shown.values(), calls, KEYS.values(), strict=True):
        for body in (example, json.loads(output)):
            assert list(body) == keys
            assert all(list(row) == row_keys for row in body["data"])
            assert body["data"]
            assert body["tenantId"] == "org-acme"
    assert len(picture.splitlines()) == 12
    assert json.loads(sending) == {"accepted": 1, "rejected": []}
    assert "me" in {row["agentId"] for row in service.get("/api/v1/analytics/agents", "org-acme")[1]["data"]}


def test_messages_of_the_troubleshooting_table_are_messages_of_the_program() -> None:
    # Text that is spread over several literals is one message.
    program = re.sub(r'"\s*\n\s*f?"', "", "".join(source("agentidp_analytics", "clickhouse", "query_api", "exporter")))
    engine = ("Directory metadata/", "Unknown table expression", "error while attempting to bind")
    messages = [part for row in rows(OPERATIONS.partition("## Troubleshooting")[2]) for part in code_spans(row[0])]
    assert len(messages) > 15
    for message in messages:
        if message not in STATUS_OF_CODE and not message.startswith(("--", *engine)):
            assert message in program, message


def test_the_configuration_examples_are_read(tmp_path: Path) -> None:
    examples = [content for language, content in blocks(OPERATIONS) if language == "yaml"]
    web = next(content for content in examples if "tls_server_config" in content)
    (tmp_path / "web.yml").write_text(web)
    settings = read_web_settings(tmp_path / "web.yml")
    assert settings.tls is not None
    assert settings.users
    scrape = next(content for content in examples if "scrape_configs" in content)
    assert yaml.safe_load(scrape)["scrape_configs"][0]["job_name"] == "agentidp-analytics"


def test_the_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.findall(r"^## (.+)$", EVERYTHING["CHANGELOG.md"], re.MULTILINE)[0]
    assert version in newest


def event(name: str) -> dict[str, Any]:
    return {"event_id": name, "tenant_id": "org-acme", "agent_id": "docs", "issued_at": time.time()}


def test_the_paths_through_the_architecture_lead_somewhere() -> None:
    named = re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 25
    for path, name in named:
        defined = {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, "name")}
        assert name in defined, (path, name)


@pytest.mark.parametrize("room", ["agentidp_analytics", "clickhouse", "query_api", "exporter"])
def test_the_map_of_a_room_names_every_module_in_it(room: str) -> None:
    for package in (path.parent for path in (ROOT / room).rglob("__init__.py")):
        told = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        inside = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
        inside |= {path.parent.name for path in package.glob("*/__init__.py")}
        assert {name for name in inside if not re.search(rf"\b{name}\b", told)} == set(), package


def source(*folders: str) -> list[str]:
    return [path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
