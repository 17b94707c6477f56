"""The API's own description (OpenAPI 3.1), served at /openapi.json and held against the routes by a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from clickhouse.agent_detail import MOST
from clickhouse.alert import KINDS, SEVERITIES
from query_api.http.errors import STATUS_OF_CODE
from query_api.http.parameters import AGENTS_MAX, ALERT_DAYS_DEFAULT, DAYS_DEFAULT, DAYS_MAX
from query_api.http.request_context import RequestContext
from query_api.http.responses import body_answer, json_bytes
from query_api.ingest.formats import FORMATS
from query_api.ingest.signatures import SIGNATURE_HEADER

_Schema = dict[str, Any]

_COUNT: Final[_Schema] = {"type": "integer", "minimum": 0}
_TENANT_ID: Final[_Schema] = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"}
_IDENTIFIER: Final[_Schema] = {"type": "string", "minLength": 1, "maxLength": 256}


def _exactly(**properties: _Schema) -> _Schema:
    """An object with these members, all of them and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list_of(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_MOMENT: Final[_Schema] = {"type": "string", "format": "date-time"}
_USED: Final = {
    **_list_of(
        _exactly(value={"type": "string"}, count={"type": "integer", "minimum": 1}, firstSeen=_MOMENT, lastSeen=_MOMENT)
    ),
    "maxItems": MOST,
}
_EVENT: Final[_Schema] = {
    "type": "object",
    "description": "One token issued or refused. Unknown fields are ignored.",
    "required": ["event_id", "tenant_id", "agent_id", "issued_at"],
    "properties": {
        "event_id": {**_IDENTIFIER, "description": "Unique per tenant; a resend keeps it and issued_at."},
        "tenant_id": _TENANT_ID,
        "agent_id": {**_IDENTIFIER, "description": "No control characters."},
        "issued_at": {
            "description": "RFC 3339 with an offset, or Unix seconds or milliseconds. "
            "At most 5 minutes in the future, not before 2000-01-01.",
            "oneOf": [{"type": "string", "format": "date-time"}, {"type": "number"}],
        },
        "outcome": {"enum": ["success", "failure"], "default": "success"},
        "grant_type": {"type": "string"},
        "scope": {"type": "string"},
        "client_ip": {"type": "string"},
        "user_agent": {"type": "string"},
        "source": {"type": "string"},
        "expires_in": {"type": "integer", "minimum": 0, "description": "Seconds."},
    },
}
_CLOUD_EVENT: Final[_Schema] = {
    "type": "object",
    "description": "A CloudEvent 1.0 whose data is the event.",
    "required": ["specversion", "id", "source", "type", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "data": _ref("Event"),
    },
}

SCHEMAS: Final[Mapping[str, _Schema]] = {
    "Event": _EVENT,
    "CloudEvent": _CLOUD_EVENT,
    "Error": {
        "type": "object",
        "properties": {
            "code": {"enum": list(STATUS_OF_CODE)},
            "message": {"type": "string"},
            "details": {"type": "object"},
        },
        "required": ["code", "message"],
        "additionalProperties": False,
    },
    "Trend": _exactly(
        tenantId=_TENANT_ID,
        days={"type": "integer", "minimum": 1, "maximum": DAYS_MAX},
        data=_list_of(_exactly(date={"type": "string", "format": "date"}, count=_COUNT)),
    ),
    "Activity": _exactly(
        tenantId=_TENANT_ID,
        data=_list_of(
            _exactly(
                dow={"type": "integer", "minimum": 0, "maximum": 6, "description": "0 is Sunday."},
                hour={"type": "integer", "minimum": 0, "maximum": 23, "description": "UTC."},
                count={"type": "integer", "minimum": 1},
            )
        ),
    ),
    "Agents": _exactly(
        tenantId=_TENANT_ID,
        month={"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$"},
        data=_list_of(_exactly(agentId=_IDENTIFIER, tokenCount={"type": "integer", "minimum": 1})),
    ),
    "Alerts": _exactly(
        tenantId=_TENANT_ID,
        days={"type": "integer", "minimum": 1, "maximum": DAYS_MAX},
        data=_list_of(
            _exactly(
                id={"type": "string", "description": "The same at every look."},
                kind={"enum": list(KINDS)},
                severity={"enum": list(SEVERITIES)},
                agentId={"type": ["string", "null"], "description": "null: of the whole tenant."},
                since=_MOMENT,
                until={**_MOMENT, "type": ["string", "null"], "description": "null while it lasts."},
                score={"type": "number", "description": "Above the threshold is over the limit."},
                threshold={"type": "number"},
                observed={"type": "number"},
                expected={"type": "number"},
                message={"type": "string", "description": "What happened, in one sentence."},
            )
        ),
    ),
    "AgentDetail": _exactly(
        tenantId=_TENANT_ID,
        agentId=_IDENTIFIER,
        days={"type": "integer", "minimum": 1, "maximum": DAYS_MAX},
        firstSeen=_MOMENT,
        lastSeen=_MOMENT,
        issued=_COUNT,
        failures=_COUNT,
        outstanding={**_COUNT, "type": ["integer", "null"], "description": "Tokens not yet expired."},
        wasted={
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": 1,
            "description": "Share issued while an earlier one of the same scope had over half its lifetime left.",
        },
        data=_list_of(_exactly(date={"type": "string", "format": "date"}, count=_COUNT, failures=_COUNT)),
        networks=_USED,
        userAgents=_USED,
        grantTypes=_USED,
        scopes=_USED,
    ),
    "Accepted": _exactly(
        accepted=_COUNT,
        rejected=_list_of(
            _exactly(
                index={"type": "integer", "minimum": 0, "description": "Position in the batch, from 0."},
                pointer={"type": "string", "description": "JSON Pointer (RFC 6901) into the event."},
                code={"type": "string"},
                message={"type": "string"},
            )
        ),
    ),
    "Status": _exactly(status={"type": "string"}),
    "OpenApi": {"type": "object", "required": ["openapi", "info", "paths"]},
}

_ERRORS: Final[Mapping[int, str]] = {
    400: "The request is wrong; details say where.",
    401: "No valid bearer token (RFC 6750).",
    404: "The tenant never had this agent.",
    403: "The token lacks the scope or the tenant claim, or ingest is off.",
    413: "The body, as sent or unpacked, or the number of events is beyond the limit.",
    415: "The media type or the content coding is not one of those listed.",
    429: "More than this caller's share; Retry-After says when to come back.",
    500: "A fault of the service; nothing about it is told.",
    503: "The store, the issuer's keys or a free place are missing; Retry-After says when to come back.",
}
_REQUEST_ID: Final[_Schema] = {
    "description": "The caller's X-Request-Id if it is 1 to 64 of A-Z a-z 0-9 . _ -, else a new one; it is in the log.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
_EXTRA_HEADERS: Final[Mapping[int, str]] = {
    401: "WWW-Authenticate",
    405: "Allow",
    429: "Retry-After",
    503: "Retry-After",
}


def _answer(description: str, schema: str, status: int) -> _Schema:
    headers = {"X-Request-Id": _REQUEST_ID}
    if status in _EXTRA_HEADERS:
        headers[_EXTRA_HEADERS[status]] = {"schema": {"type": "string"}, "required": True}
    return {
        "description": description,
        "headers": headers,
        "content": {"application/json": {"schema": _ref(schema)}},
    }


def _operation(
    name: str,
    summary: str,
    schema: str,
    *,
    errors: tuple[int, ...],
    security: str | None = None,
    parameters: tuple[_Schema, ...] = (),
) -> _Schema:
    responses = {"200": _answer("Done.", schema, 200)}
    responses |= {str(status): _answer(_ERRORS[status], "Error", status) for status in errors}
    operation: _Schema = {
        "operationId": name,
        "summary": summary,
        "security": [{security: []}] if security else [],
        "responses": responses,
    }
    if parameters:
        operation["parameters"] = list(parameters)
    return operation


def _readable(operation: _Schema) -> _Schema:
    """GET, and HEAD with the same headers and no body."""
    head = {
        **operation,
        "operationId": operation["operationId"] + "Head",
        "responses": {
            status: {name: value for name, value in answer.items() if name != "content"}
            for status, answer in operation["responses"].items()
        },
    }
    return {"get": operation, "head": head}


_DAYS: Final[_Schema] = {
    "name": "days",
    "in": "query",
    "description": "Calendar days (UTC), ending today.",
    "schema": {"type": "integer", "minimum": 1, "maximum": DAYS_MAX, "default": DAYS_DEFAULT},
}
_ALERT_DAYS: Final[_Schema] = {
    "name": "days",
    "in": "query",
    "description": "Alerts that lasted at any time of so many days before now.",
    "schema": {"type": "integer", "minimum": 1, "maximum": DAYS_MAX, "default": ALERT_DAYS_DEFAULT},
}
_AGENT: Final[_Schema] = {
    "name": "agent",
    "in": "query",
    "required": True,
    "description": "The agent that is asked about.",
    "schema": _IDENTIFIER,
}
_LIMIT: Final[_Schema] = {
    "name": "limit",
    "in": "query",
    "description": "Agents in one answer.",
    "schema": {"type": "integer", "minimum": 1, "maximum": AGENTS_MAX, "default": AGENTS_MAX},
}
_AFTER: Final[_Schema] = {
    "name": "after",
    "in": "query",
    "description": "Where the page begins: from the Link header of the one before (rel=next), as it stands there.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
}
_SIGNATURE: Final[_Schema] = {
    "name": SIGNATURE_HEADER,
    "in": "header",
    "description": 'For a source with a signing secret: HMAC-SHA256 of "<t>.<body as sent>"; t within 5 minutes.',
    "schema": {"type": "string", "pattern": "^t=[0-9]{1,12}(,v1=[0-9a-fA-F]{64}){1,4}$"},
}
_QUESTION_ERRORS: Final = (400, 401, 403, 429, 500, 503)


def _question(
    name: str, summary: str, schema: str, *parameters: _Schema, errors: tuple[int, ...] = _QUESTION_ERRORS
) -> _Schema:
    return _readable(_operation(name, summary, schema, errors=errors, security="accessToken", parameters=parameters))


def _ingest() -> _Schema:
    operation = _operation(
        "sendEvents",
        "Stores a batch of events; answers once they are durable. A resend changes no count.",
        "Accepted",
        errors=(400, 401, 403, 413, 415, 429, 500, 503),
        security="ingestToken",
        parameters=(_SIGNATURE,),
    )
    one, envelope = _ref("Event"), _ref("CloudEvent")
    batch = {"type": "object", "required": ["events"], "properties": {"events": _list_of(one)}}
    bodies: dict[str, _Schema] = {
        "application/json": {"oneOf": [one, _list_of(one), batch]},
        "application/x-ndjson": {"type": "string", "description": "One event a line."},
        "application/cloudevents+json": envelope,
        "application/cloudevents-batch+json": _list_of(envelope),
    }
    operation["requestBody"] = {
        "required": True,
        "description": "Content-Encoding: gzip is understood.",
        "content": {media_type: {"schema": bodies[media_type]} for media_type in FORMATS},
    }
    return {"post": operation}


def openapi_document() -> _Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentidp-analytics",
            "version": "1",
            "summary": "Exact token-issuance analytics for identity providers of machine agents.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/api/v1/analytics/tokens": _question("tokenTrend", "Tokens issued on each day.", "Trend", _DAYS),
            "/api/v1/analytics/agents/activity": _question(
                "agentActivity", "Tokens issued by weekday and hour; cells without any are left out.", "Activity", _DAYS
            ),
            "/api/v1/analytics/agents": _question(
                "agentTotals",
                "Tokens of each agent in the current calendar month, largest first; Link has the next page.",
                "Agents",
                _LIMIT,
                _AFTER,
            ),
            "/api/v1/analytics/agents/detail": _question(
                "agentDetail",
                "One agent, closely: its days, networks, user agents, grant types and scopes.",
                "AgentDetail",
                _AGENT,
                _DAYS,
                errors=(400, 401, 403, 404, 429, 500, 503),
            ),
            "/api/v1/analytics/alerts": _question(
                "alerts", "What is or was unusual, newest first.", "Alerts", _ALERT_DAYS
            ),
            "/api/v1/events": _ingest(),
            "/healthz": _readable(_operation("healthz", "Whether the process lives.", "Status", errors=(500,))),
            "/readyz": _readable(
                _operation(
                    "readyz", "Whether the store is reachable and its schema current.", "Status", errors=(500, 503)
                )
            ),
            "/openapi.json": _readable(_operation("openapi", "This document.", "OpenApi", errors=(500, 503))),
        },
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "accessToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The issuer's access token; its tenant claim decides whose numbers are answered.",
                },
                "ingestToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of --ingest-token-file.",
                },
            },
        },
    }


class OpenApi:
    """The handler of GET /openapi.json."""

    def __init__(self) -> None:
        self._body = json_bytes(openapi_document())

    async def __call__(self, _context: RequestContext) -> web.Response:
        """The document, rendered once."""
        return body_answer(self._body)
