"""The description against the thing: every route is in it, and every kind of answer is as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from query_api.openapi import openapi_document
from query_api.settings import Limits, Rate
from tests.support.api_harness import NOW, SOURCE_TOKEN, Reply, Service, event, run, serving
from tests.support.verdicts import Verdict, say

# Each with the parameters that it cannot do without.
QUESTIONS = {
    "/api/v1/analytics/tokens": "",
    "/api/v1/analytics/agents/activity": "",
    "/api/v1/analytics/agents": "",
    "/api/v1/analytics/agents/detail": "?agent=agent-1",
    "/api/v1/analytics/alerts": "",
}


def schema_errors(document: dict[str, Any], path: str, method: str, reply: Reply) -> list[str]:
    """What in `reply` is not as the document says for this operation and status."""
    answer = document["paths"][path][method.lower()]["responses"][str(reply.status)]
    missing = [
        name for name, header in answer["headers"].items() if name not in reply.headers and header.get("required", True)
    ]
    schema = {**answer["content"]["application/json"]["schema"], "components": document["components"]}
    faults = [error.message for error in Draft202012Validator(schema).iter_errors(reply.json())]
    return missing + faults


def test_every_route_and_method_is_described_and_no_other(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            served = (await api.request("GET", "/openapi.json")).json()
            assert served == openapi_document()
            described = {(path, method.upper()) for path, item in served["paths"].items() for method in item}
            assert described == {(path, method) for path, methods in api.api.routes.items() for method in methods}

    run(scenario())


def test_the_schemas_are_schemas_and_nothing_hangs_in_the_air() -> None:
    document = openapi_document()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    schemes = {scheme for operation in operations for need in operation["security"] for scheme in need}
    assert schemes == set(document["components"]["securitySchemes"])
    references = set(_references(document))
    assert references == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for child in value.values() for found in _references(child)]
    if isinstance(value, list):
        return [found for child in value for found in _references(child)]
    return []


def test_real_answers_of_every_status_are_as_described(connection: Connection, tmp_path: Path) -> None:
    limits = Limits(tenant_requests=Rate(1, 20), source_requests=Rate(1, 12))
    spike, silence = ("org-1", "spike", "agent-1"), ("org-1", "silence", "")
    say(connection, [Verdict(*spike, int(NOW) - 86_400), Verdict(*silence, int(NOW) - 300)])

    async def answers(api: Service) -> list[tuple[str, str, Reply]]:
        found: list[tuple[str, str, Reply]] = []
        events = "/api/v1/events"
        oversized = b" " * 10_000_001
        for body, headers in (
            (
                [
                    event(1, scope="s", client_ip="::1"),
                    event(2, agent_id=None),
                    event(3, tenant_id="org-2", agent_id="ü"),
                ],
                {},
            ),
            ([{}], {}),
            (b"{", {}),
            ({"events": 1}, {}),
            (b"", {"Content_Type": "text/plain"}),
            (oversized, {}),
            (event(), {"token": "wrong"}),
        ):
            found.append((events, "POST", await api.send(body, **headers)))
        api.event_writer.error = StoreUnavailableError("away")
        found.append((events, "POST", await api.send(event())))
        api.event_writer.error = RuntimeError("bug")
        found.append((events, "POST", await api.send(event())))
        found += [(events, "POST", await api.send(event())) for _ in range(5)]
        for full, good in QUESTIONS.items():
            api.timer.now += 60
            api.questions.error = None
            found.append((full, "GET", await api.get(full + good)))
            found.append((full, "GET", await api.get(f"{full}?x=1")))
            found.append((full, "GET", await api.request("GET", full)))
            denied = {"Authorization": f"Bearer {api.access_token(scope='x')}"}
            found.append((full, "GET", await api.request("GET", full, headers=denied)))
            if good:
                found.append((full, "GET", await api.get(f"{full}?agent=nobody")))
            api.questions.error = StoreUnavailableError("away")
            found.append((full, "GET", await api.get(full + good)))
            api.questions.error = RuntimeError("bug")
            found.append((full, "GET", await api.get(full + good)))
        for full in QUESTIONS:
            found += [(full, "GET", await api.get(full)) for _ in range(21)]
        for path in ("/healthz", "/readyz", "/openapi.json"):
            found.append((path, "GET", await api.request("GET", path)))
        api.readiness.error = StoreUnavailableError("away")
        api.timer.now += 1
        found.append(("/readyz", "GET", await api.request("GET", "/readyz")))
        return found

    async def scenario() -> None:
        document = openapi_document()
        async with serving(connection, tmp_path, limits=limits) as api:
            found = await answers(api)
        async with serving(connection, tmp_path, sources=None) as api:
            found.append(("/api/v1/events", "POST", await api.send(event(), token=SOURCE_TOKEN)))
        for path, method, reply in found:
            assert schema_errors(document, path, method, reply) == [], (path, reply.status, reply.body[:200])
        for path in QUESTIONS:
            got = {reply.status for where, _, reply in found if where == path}
            assert got == {int(status) for status in document["paths"][path]["get"]["responses"]}
        got = {reply.status for where, _, reply in found if where == "/api/v1/events"}
        assert got == {int(status) for status in document["paths"]["/api/v1/events"]["post"]["responses"]}

    run(scenario())


def test_the_event_schema_agrees_with_the_service(embedded_store: Connection, tmp_path: Path) -> None:
    document = openapi_document()
    schema = {"$ref": "#/components/schemas/Event", "components": document["components"]}
    cases = [event(), event(outcome="failure", expires_in=0, scope=""), event(issued_at=1_763_000_000.5, colour="red")]
    cases += [event(agent_id=None), event(agent_id=""), event(tenant_id="_other"), event(outcome="maybe")]
    cases += [event(issued_at=True), event(expires_in=-1), event(scope=1), event(event_id="x" * 257)]

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for case in cases:
                valid = Draft202012Validator(schema).is_valid(case)
                assert ((await api.send(case)).status == 200) == valid, case

    run(scenario())
