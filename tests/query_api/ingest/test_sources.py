"""The token file of the event sources, its renewal under a running server, and signed requests."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import os
from pathlib import Path

import pytest

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from query_api.ingest.sources import SourceTokens, SourceTokensError
from tests.support.api_harness import SOURCE_TOKEN, Reply, Service, event, logged, run, serving

SECRET = "a-signing-secret-1"
OTHER = "another-source-token"


def tokens_of(tmp_path: Path, text: str | bytes, mode: int = 0o600) -> SourceTokens:
    path = tmp_path / "tokens"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return SourceTokens(path)


def test_each_line_is_a_source(tmp_path: Path) -> None:
    tokens = tokens_of(
        tmp_path,
        f"# a comment\n\n  {SOURCE_TOKEN}\n{OTHER} name=webhook tenants=a,b prefix=acme-,x: hmac={SECRET}\n",
    )
    plain, bound = tokens.find(SOURCE_TOKEN), tokens.find(OTHER)
    assert plain is not None
    assert (plain.name, plain.signing_key, plain.may_send("anyone")) == ("line-3", None, True)
    assert bound is not None
    assert (bound.name, bound.signing_key) == ("webhook", SECRET.encode())
    allowed = {tenant: bound.may_send(tenant) for tenant in ("a", "b", "acme-1", "x:", "ab", "A", "acme", "zacme-1")}
    assert [tenant for tenant, yes in allowed.items() if yes] == ["a", "b", "acme-1", "x:"]
    assert tokens.find("") is None
    assert tokens.find("# a comment") is None
    assert SECRET not in repr(bound)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sh{rt", 1),
        (f"# x\n\n{'x' * 15}{{", 3),
        (f"{SOURCE_TOKEN} name=ok\nwith-a-strange-ü-character", 2),
        (f'{SOURCE_TOKEN}"quoted"', 1),
        (f"{SOURCE_TOKEN} colour=red", 1),
        (f"{SOURCE_TOKEN} name", 1),
        (f"{SOURCE_TOKEN} name=", 1),
        (f"{SOURCE_TOKEN} name=a name=b", 1),
        (f"{SOURCE_TOKEN} name=a/b", 1),
        (f"{SOURCE_TOKEN} name={'n' * 65}", 1),
        (f"{SOURCE_TOKEN} tenants=a,,b", 1),
        (f"{SOURCE_TOKEN} tenants=a,_b", 1),
        (f"{SOURCE_TOKEN} prefix=-", 1),
        (f"{SOURCE_TOKEN} prefix=a,", 1),
        (f"{SOURCE_TOKEN} hmac=short", 1),
    ],
)
def test_a_line_that_is_wrong_is_named_without_its_secrets(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(SourceTokensError) as caught:
        tokens_of(tmp_path, text)
    message = str(caught.value)
    assert f"line {line}:" in message
    assert str(tmp_path / "tokens") in message
    secrets = [word.removeprefix("hmac=") for word in text.split() if "=" not in word or word.startswith("hmac=")]
    assert not [secret for secret in secrets if secret in message and secret not in ("#", "name")]


def test_a_file_that_is_wrong_as_a_whole_is_refused(tmp_path: Path) -> None:
    for text in ("", "\n# only a comment\n", f"{SOURCE_TOKEN}\n{SOURCE_TOKEN}", b"\xff\xfe" + b"x" * 20):
        with pytest.raises(SourceTokensError, match="--ingest-token-file"):
            tokens_of(tmp_path, text)
    with pytest.raises(SourceTokensError, match="same name"):
        tokens_of(tmp_path, f"{SOURCE_TOKEN} name=a\n{OTHER} name=a")
    with pytest.raises(SourceTokensError, match="cannot be read"):
        SourceTokens(tmp_path / "missing")
    with pytest.raises(SourceTokensError, match="cannot be read"):
        SourceTokens(tmp_path)


def test_a_file_that_everybody_can_read_is_warned_of(tmp_path: Path) -> None:
    for mode, warned in {0o600: False, 0o640: False, 0o644: True}.items():
        with logged() as lines:
            tokens_of(tmp_path, SOURCE_TOKEN, mode)
        assert [line for line in lines if "can be read by every user" in line] != [] if warned else lines == []


def test_a_changed_file_is_used_and_a_broken_one_is_not(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:

            async def statuses() -> tuple[int, int]:
                first, second = await api.send(event()), await api.send(event(), token=OTHER)
                return first.status, second.status

            assert await statuses() == (200, 401)
            api.token_file.write_text(f"{SOURCE_TOKEN}\n{OTHER}\n")
            assert await statuses() == (200, 200)
            with logged() as lines:
                for broken in (f"{OTHER} nonsense=1", "", "x{"):
                    api.token_file.write_text(broken)
                    assert await statuses() == (200, 200)
                    assert await statuses() == (200, 200)
                api.token_file.unlink()
                assert await statuses() == (200, 200)
            assert len([line for line in lines if "stay as they were" in line]) == 4
            assert not [line for line in lines if OTHER in line or SOURCE_TOKEN in line]
            replacement = tmp_path / "next"
            replacement.write_text(OTHER)
            os.replace(replacement, api.token_file)  # noqa: PTH105 - what a mounted secret does
            assert await statuses() == (401, 200)

    run(scenario())


# --- signatures


def signature(body: bytes, moment: float | str, key: str = SECRET) -> str:
    text = moment if isinstance(moment, str) else str(int(moment))
    digest = hmac.new(key.encode(), text.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={text},v1={digest}"


async def send_signed(api: Service, body: bytes, header: str | None, **headers: str) -> Reply:
    extra = {} if header is None else {"X-AgentIdP-Signature": header}
    return await api.send(body, **extra, **headers)


def test_a_source_with_a_secret_must_sign_what_it_sends(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, sources=f"{SOURCE_TOKEN} hmac={SECRET}") as api:
            body, now = json.dumps(event()).encode(), api.clock.now
            good = signature(body, now)
            assert (await send_signed(api, body, good)).status == 200
            refused: dict[str, list[str | None]] = {
                "signature_missing": [None],
                "signature_malformed": [
                    "",
                    "x",
                    good[2:],
                    good + ",v0=1",
                    "t=-1" + good[good.index(",") :],
                ],
                "signature_stale": [signature(body, now - 301), signature(body, now + 301), signature(body, 0)],
                "signature_mismatch": [
                    signature(body + b" ", now),
                    signature(body, now, "another-secret-123"),
                    signature(body, now - 1).replace(str(int(now - 1)), str(int(now))),
                    good.replace("t=", "t=0"),
                ],
            }
            for reason, headers in refused.items():
                for header in headers:
                    reply = await send_signed(api, body, header)
                    assert (reply.status, reply.code) == (401, "UNAUTHORIZED"), (reason, header)
                    assert "WWW-Authenticate" in reply.headers
                assert api.metric("auth_failures_total", reason=reason) == len(headers)
            # Signed anew, as a sender does that resends; and with the old and the new secret while it is changed.
            assert (await send_signed(api, body, signature(body, now - 300))).status == 200
            both = f"t={int(now) + 300},v1={'0' * 64},{signature(body, now + 300).split(',')[1]}"
            assert (await send_signed(api, body, both)).status == 200
            packed = gzip.compress(body)
            assert (await send_signed(api, packed, signature(body, now + 1), Content_Encoding="gzip")).status == 401
            assert (await send_signed(api, packed, signature(packed, now), Content_Encoding="gzip")).status == 200
            large = body.ljust(100_000)
            assert (await send_signed(api, large, signature(large, now))).status == 200

    run(scenario())


def test_a_signed_request_that_comes_again_counts_once(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, sources=f"{SOURCE_TOKEN} hmac={SECRET}") as api:
            body = json.dumps(event(tenant_id="org-replayed")).encode()
            header = signature(body, api.clock.now)
            api.event_writer.error = StoreUnavailableError("away")
            assert (await send_signed(api, body, header)).status == 503
            api.event_writer.error = None
            for _ in range(3):
                assert (await send_signed(api, body, header)).status == 200
            trend = (await api.get("/api/v1/analytics/tokens?days=1", tenant="org-replayed")).json()
            assert trend["data"][0]["count"] == 1

    run(scenario())


def test_a_short_token_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tokens_of(tmp_path, "short").find("short") is not None
    assert "can be guessed" in caplog.text
