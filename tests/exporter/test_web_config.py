from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter import basic_auth
from exporter.basic_auth import BasicAuth, TooManyChecksError, bcrypt_cost
from exporter.web_config import WebConfig
from exporter.web_settings import WebConfigError, read_web_settings
from tests.support.exporter_harness import Running, curl, curl_status, running, store_of

# Cost 4, the lowest there is, for tests that are not about time.
SECRET_HASH = bcrypt.hashpw(b"s3cret", b"$2b$04$abcdefghijklmnopqrstuu").decode()


@dataclass
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, certificate: Path, key: Path, password: bytes | None = None) -> None:
        certificate.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
            )
        )


def sign(name: str, issuer: Signed | None = None) -> Signed:
    """A certificate for 127.0.0.1; self-signed and a CA without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    return Signed(certificate, key)


@pytest.fixture(scope="module")
def ca() -> Signed:
    return sign("test CA")


@pytest.fixture
def directory(tmp_path: Path, ca: Signed) -> Path:
    """A directory with ca.crt, server.crt/.key, and client.crt/.key."""
    ca.write(tmp_path / "ca.crt", tmp_path / "ca.key")
    sign("server", ca).write(tmp_path / "server.crt", tmp_path / "server.key")
    sign("client", ca).write(tmp_path / "client.crt", tmp_path / "client.key")
    return tmp_path


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


def configure(directory: Path, text: str) -> WebConfig:
    (directory / "web.yml").write_text(text)
    return WebConfig(directory / "web.yml")


def serial(exporter: Running) -> int:
    """Of the certificate that a new connection gets."""
    pem = ssl.get_server_certificate(("127.0.0.1", exporter.port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def serial_on_disk(directory: Path) -> int:
    return x509.load_pem_x509_certificate((directory / "server.crt").read_bytes()).serial_number


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_full_file_is_understood(directory: Path) -> None:
    (directory / "web.yml").write_text(
        f"""
tls_server_config:
  cert_file: server.crt
  key_file: {directory}/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
basic_auth_users:
  no: {SECRET_HASH}
  1234: {SECRET_HASH.replace("$2b$", "$2y$")}
"""
    )
    settings = read_web_settings(directory / "web.yml")
    assert settings.tls is not None
    assert settings.tls.files == (directory / "server.crt", directory / "server.key", directory / "ca.crt")
    assert settings.tls.client_auth is ssl.CERT_REQUIRED
    assert list(settings.users) == ["no", "1234"], "names are text, whatever YAML thinks of them"


@pytest.mark.parametrize("text", ["", "# nothing\n", "tls_server_config:\nbasic_auth_users: {}\n"])
def test_an_empty_file_asks_for_nothing(directory: Path, text: str) -> None:
    config = configure(directory, text)
    assert config.ssl_context() is None
    assert config.settings().users == {}


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("tls_config: {}", "tls_config", "unknown key; known here: tls_server_config, basic_auth_users"),
        (TLS + "  cert_fil: x", "tls_server_config.cert_fil", "unknown key"),
        ("http_server_config: {headers: {}}", "http_server_config", "not supported here; remove it; if headers"),
        ("rate_limit: {burst: 1}", "rate_limit", "not supported here; limit requests in a proxy"),
        (TLS + "  cert: PEM", "tls_server_config.cert", "not supported here; put the certificate into a file"),
        (TLS + "  cipher_suites: [X]", "tls_server_config.cipher_suites", "not supported here"),
        (TLS + "  client_allowed_sans: [X]", "tls_server_config.client_allowed_sans", "not supported here"),
        ("tls_server_config: {cert_file: server.crt}", "tls_server_config.key_file", "is missing"),
        ("tls_server_config: {client_ca_file: x}", "tls_server_config.cert_file", "is missing"),
        ("tls_server_config: {cert_file: [a], key_file: b}", "tls_server_config.cert_file", "must be a single value"),
        (TLS + "  min_version: TLS13", "tls_server_config.min_version", "not supported here; remove it: TLS 1.2"),
        (TLS + "  max_version: TLS12", "tls_server_config.max_version", "not supported here"),
        (TLS + "  client_auth_type: RequireAnyClientCert", "client_auth_type", "must be one of NoClientCert"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert", "client_auth_type", "needs client_ca_file"),
        (TLS + "  client_ca_file: ca.crt", "client_ca_file", "needs client_auth_type RequireAndVerifyClientCert"),
        ("basic_auth_users: {alice: s3cret}", "basic_auth_users.alice", "is no bcrypt hash; `htpasswd"),
        (f"basic_auth_users: {{alice: {SECRET_HASH[:-1]}}}", "basic_auth_users.alice", "is no bcrypt hash"),
        (f"basic_auth_users: {{'a:b': {SECRET_HASH}}}", "basic_auth_users.a:b", "colon"),
        (f"basic_auth_users: {{bob: {SECRET_HASH.replace('$04$', '$17$')}}}", "basic_auth_users.bob", "bcrypt cost 17"),
        (f"basic_auth_users: {{a: {SECRET_HASH}, a: {SECRET_HASH}}}", "web.yml", "line 1: a key is there twice"),
        ("basic_auth_users: [alice]", "basic_auth_users", "must be a mapping"),
        ("- basic_auth_users", "the file", "must be a mapping"),
        ("a: b: c", "web.yml", "no valid YAML in the part from line 1"),
        ("a: \x07", "web.yml", "no valid YAML: ReaderError"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(directory: Path, text: str, key: str, problem: str) -> None:
    with pytest.raises(WebConfigError) as caught:
        configure(directory, text)
    message = str(caught.value)
    assert message.startswith(f"{directory / 'web.yml'}: ")
    assert key in message
    assert problem in message
    assert "s3cret" not in message
    assert "$2b$" not in message


def test_files_that_cannot_be_used_are_named(directory: Path) -> None:
    with pytest.raises(WebConfigError, match=r"absent\.yml: cannot read the web configuration: No such file"):
        WebConfig(directory / "absent.yml")
    (directory / "web.yml").write_bytes(b"\xff")
    with pytest.raises(WebConfigError, match=r"web\.yml: .* not UTF-8"):
        WebConfig(directory / "web.yml")
    (directory / "server.key").rename(directory / "other.key")
    with pytest.raises(WebConfigError, match=r"cert_file and key_file: .* cannot read .*/server\.key"):
        configure(directory, TLS)
    (directory / "client.key").rename(directory / "server.key")
    with pytest.raises(WebConfigError, match=r"cert_file and key_file: .* key values mismatch"):
        configure(directory, TLS)
    sign("server").write(directory / "server.crt", directory / "server.key", password=b"x")
    with pytest.raises(WebConfigError, match=r"cert_file and key_file: .* the key is encrypted"):
        configure(directory, TLS)


def test_a_client_ca_that_cannot_be_used_is_named(directory: Path) -> None:
    (directory / "ca.crt").write_text("nothing")
    with pytest.raises(WebConfigError, match=r"tls_server_config\.client_ca_file: cannot use .*/ca\.crt"):
        configure(directory, TLS + "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n")


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_and_its_reload(directory: Path, ca: Signed, caplog: pytest.LogCaptureFixture) -> None:
    config = configure(directory, TLS)
    trust = ("--cacert", str(directory / "ca.crt"))

    async def scenario() -> None:
        async with running(store_of(10), web_config=config) as exporter:

            async def new_connection() -> int:
                return await asyncio.to_thread(serial, exporter)

            assert exporter.scheme == "https"
            answer = await curl(*trust, "--compressed", "--include", exporter.url())
            assert b"agentidp_tenant_month_tokens" in answer
            first = serial_on_disk(directory)
            assert await new_connection() == first

            sign("server", ca).write(directory / "server.crt", directory / "server.key")
            second = serial_on_disk(directory)
            assert second != first
            assert await new_connection() == second

            sign("server", ca).write(directory / "server.crt", directory / "unused.key")
            assert await new_connection() == second, "a certificate without its key is not used"
            assert "key values mismatch" in caplog.text
            (directory / "unused.key").rename(directory / "server.key")
            assert await new_connection() == serial_on_disk(directory)

            (directory / "web.yml").write_text("tls_server_config: {cert_fil: x}")
            assert await curl_status(*trust, exporter.url()) == 200
            assert "cert_fil: unknown key" in caplog.text
            (directory / "web.yml").write_text("")
            assert await curl_status(*trust, exporter.url()) == 200
            assert "turning TLS on or off needs a restart" in caplog.text
            (directory / "web.yml").write_text(TLS + f"basic_auth_users: {{alice: {SECRET_HASH}}}\n")
            assert await curl_status(*trust, exporter.url()) == 401

    asyncio.run(scenario())


async def refused(*arguments: str) -> bool:
    """Whether the connection is not made, or ended before any answer."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", "20", *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    return await process.wait() in (35, 52, 55, 56)


def test_client_certificates_and_tls_versions(directory: Path) -> None:
    mutual = TLS + "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n"
    config = configure(directory, mutual)
    sign("stranger").write(directory / "stranger.crt", directory / "stranger.key")
    trust = ("--cacert", str(directory / "ca.crt"))

    def show(name: str) -> tuple[str, ...]:
        return (*trust, "--cert", f"{directory / name}.crt", "--key", f"{directory / name}.key")

    async def scenario() -> None:
        async with running(store_of(1), web_config=config) as exporter:
            assert await curl_status(*show("client"), exporter.url()) == 200
            assert await refused(*trust, exporter.url())
            assert await refused(*show("stranger"), exporter.url())
            assert await curl_status(*show("client"), "--tls-max", "1.2", exporter.url()) == 200

            assert await refused(*show("client"), "--ciphers", "DEFAULT@SECLEVEL=0", "--tls-max", "1.1", exporter.url())

            (directory / "web.yml").write_text(mutual.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
            assert await curl_status(*trust, exporter.url()) == 200
            assert await refused(*show("stranger"), exporter.url())

    asyncio.run(scenario())


# --- basic authentication ---------------------------------------------------------------------------------------------


def test_every_path_asks_for_credentials(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = configure(directory, f"basic_auth_users: {{alice: {SECRET_HASH}}}\n")

    async def scenario() -> None:
        async with running(store_of(1), web_config=config) as exporter:
            for path in ("/metrics", "/", "/-/healthy", "/-/ready", "/nothing"):
                assert await curl_status(exporter.url(path)) == 401
            for credentials in ("alice:wrong", "alice:", ":s3cret", "bob:s3cret", "Alice:s3cret", "alice:s3cret:"):
                assert await curl_status("--user", credentials, exporter.url()) == 401
            answer = await curl("--include", "--user", "alice:wrong", exporter.url())
            assert b"WWW-Authenticate: Basic " in answer
            assert b"agentidp" not in answer
            assert await curl_status("--user", "alice:s3cret", exporter.url()) == 200
            assert await curl_status("--user", "alice:s3cret", exporter.url("/-/healthy")) == 200
            refusals = {"reason": "credentials"}
            assert exporter.registry.get_sample_value("agentidp_analytics_scrapes_refused_total", refusals) == 12
            twice = ("--header", "Authorization: Basic YWxpY2U6czNjcmV0")
            assert await curl_status(*twice, exporter.url()) == 200
            assert await curl_status(*twice, *twice, exporter.url()) == 401

            other = bcrypt.hashpw(b"changed", b"$2b$04$abcdefghijklmnopqrstuu").decode()
            (directory / "web.yml").write_text(f"basic_auth_users: {{alice: {other}}}\n")
            assert await curl_status("--user", "alice:s3cret", exporter.url()) == 401
            assert await curl_status("--user", "alice:changed", exporter.url()) == 200

    asyncio.run(scenario())
    assert "s3cret" not in caplog.text


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic YWxpY2U",
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"\xff:s3cret").decode(),
        "Bearer YWxpY2U6czNjcmV0",
        "YWxpY2U6czNjcmV0",
        basic("alice", "s3cret") + " x",
    ],
)
def test_headers_that_are_no_credentials_are_refused_without_a_check(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", None)
    auth = BasicAuth()
    assert not asyncio.run(auth.allows(header, {"alice": SECRET_HASH.encode()}, "192.0.2.1"))
    auth.close()


def test_the_scheme_has_no_case_and_passwords_are_cut_where_bcrypt_cuts_them() -> None:
    async def scenario() -> None:
        auth = BasicAuth()
        long = "ä" * 36
        users = {"alice": bcrypt.hashpw(long.encode(), b"$2b$04$abcdefghijklmnopqrstuu"), "zoë": SECRET_HASH.encode()}
        assert await auth.allows(basic("alice", long), users, "192.0.2.1")
        assert await auth.allows(basic("alice", long + "more"), users, "192.0.2.1")
        assert await auth.allows(basic("zoë", "s3cret").replace("Basic", "bAsIc "), users, "192.0.2.1")
        assert not await auth.allows(basic("alice", "\0"), users, "192.0.2.1")
        auth.close()

    asyncio.run(scenario())


class Checks:
    """Counts the runs of the real bcrypt, and can hold them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[int | None] = []
        self.go = threading.Event()
        self.go.set()
        self._real = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self)

    def __call__(self, password: bytes, hashed: bytes) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.go.wait(10)
            self.costs.append(int(hashed[4:6]))
        return self._real(password, hashed)


def test_one_check_for_each_user_and_none_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch)

    async def scenario() -> None:
        auth = BasicAuth()
        users = {"alice": SECRET_HASH.encode(), "bob": bcrypt.hashpw(b"b", bcrypt.gensalt(6))}
        at_once = await asyncio.gather(
            *(auth.allows(basic("alice", "s3cret"), users, "192.0.2.1") for _ in range(basic_auth._MAX_WAITING))
        )
        assert all(at_once)
        assert checks.costs == [4]
        assert await auth.allows(basic("alice", "s3cret"), users, "192.0.2.1")
        assert checks.costs == [4]
        assert not await auth.allows(basic("alice", "wrong"), users, "192.0.2.1")
        assert not await auth.allows(basic("nobody", "wrong"), users, "192.0.2.1")
        assert checks.costs == [4, 4, 6], "an unknown user costs as much as the costliest known one"
        assert await auth.allows(basic("alice", "s3cret"), users, "192.0.2.1")
        assert checks.costs == [4, 4, 6], "a wrong password does not push out the right one"
        auth.close()

    asyncio.run(scenario())


def test_a_flood_of_wrong_passwords_is_turned_away_and_known_users_are_not(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(directory, f"basic_auth_users: {{alice: {SECRET_HASH}}}\n")
    checks = Checks(monkeypatch)

    async def scenario() -> None:
        async with running(store_of(1), web_config=config) as exporter:
            assert await curl_status("--user", "alice:s3cret", exporter.url()) == 200
            checks.go.clear()
            flood = [
                asyncio.create_task(curl_status("--user", f"alice:{n}", exporter.url("/-/healthy"))) for n in range(12)
            ]
            for turned_away in islice(asyncio.as_completed(flood), 7):
                assert await turned_away == 503
            assert await curl_status("--user", "alice:s3cret", exporter.url()) == 200
            checks.go.set()
            assert sorted([await task for task in flood]) == [401] * 5 + [503] * 7

    asyncio.run(scenario())


async def guess_for_ever(exporter: Running, address: str, busy: asyncio.Event) -> None:
    """Sends wrong passwords from `address`, one after the other; `busy` is set when one was not even looked at."""
    while True:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", exporter.port, local_addr=(address, 0))
            for n in count():
                writer.write(
                    f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: {basic('alice', str(n))}\r\n\r\n".encode()
                )
                if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503"):
                    busy.set()


def test_one_address_that_guesses_keeps_no_other_out(directory: Path) -> None:
    users = [f"scraper-{n}" for n in range(6)]
    config = configure(directory, "basic_auth_users:\n" + "".join(f"  {user}: {SECRET_HASH}\n" for user in users))

    async def scenario() -> None:
        async with running(store_of(1), web_config=config, server_options={"max_connections": 20}) as exporter:
            # More than all connections there may be.
            busy = asyncio.Event()
            flood = [asyncio.create_task(guess_for_ever(exporter, "127.0.0.2", busy)) for _ in range(24)]
            await busy.wait()
            for user in users:  # none seen before
                assert await curl_status("--max-time", "10", "--user", f"{user}:s3cret", exporter.url()) == 200
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)

    asyncio.run(scenario())


def test_addresses_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch)
    checks.go.clear()

    async def scenario() -> None:
        auth = BasicAuth()
        users = {"alice": SECRET_HASH.encode()}
        ended: list[str] = []

        async def guess(address: str, password: str) -> None:
            await auth.allows(basic("alice", password), users, address)
            ended.append(address)

        guesses = [
            asyncio.create_task(guess(address, f"{address}{n}"))
            for address, n in (
                ("192.0.2.1", 0),
                ("192.0.2.1", 1),
                ("192.0.2.1", 2),
                ("2001:db8::1", 0),
                ("2001:db8::2", 1),
                ("::ffff:192.0.2.1", 3),
                ("192.0.2.2", 0),
            )
        ]
        await asyncio.sleep(0)
        guesses[1].cancel()
        checks.go.set()
        await asyncio.gather(*guesses, return_exceptions=True)
        assert ended == ["192.0.2.1", "192.0.2.1", "2001:db8::1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::2"]
        assert not await auth.allows(basic("alice", "x"), users, "192.0.2.1"), "it is free again"
        auth.close()

    asyncio.run(scenario())


def test_too_many_checks_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic_auth, "_MAX_WAITING", 0)

    async def scenario() -> None:
        auth = BasicAuth()
        auth._busy = True
        with pytest.raises(TooManyChecksError):
            await auth.allows(basic("alice", "s3cret"), {"alice": SECRET_HASH.encode()}, "192.0.2.1")
        auth.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("hashed", "cost"),
    [
        (SECRET_HASH, 4),
        (SECRET_HASH.replace("$04$", "$10$"), 10),
        (SECRET_HASH.replace("$2b$", "$2a$"), 4),
        (SECRET_HASH.replace("$2b$", "$2x$"), None),
        (SECRET_HASH.replace("$04$", "$03$"), None),
        (SECRET_HASH.replace("$04$", "$32$"), None),
        (SECRET_HASH + "\n", None),
        ("x" + SECRET_HASH, None),
        ("", None),
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", None),
    ],
)
def test_bcrypt_cost(hashed: str, cost: int | None) -> None:
    assert bcrypt_cost(hashed.encode()) == cost
