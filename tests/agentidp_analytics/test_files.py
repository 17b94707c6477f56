"""The metrics of the files that settings name: real files, changed on disk, looked at by a scrape alone."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from agentidp_analytics.files import FileMetrics, Files, ends_at
from exporter.web_config import WebConfig
from query_api.http.tls import ServerCertificate
from query_api.ingest.sources import SourceTokens
from tests.support.service import Service, request, wait_for

TOKEN = "a-token-of-some-source"
FIRST, SECOND = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2032, 5, 6, 7, 8, 9, tzinfo=UTC)
WORKED, READ_AT, ENDS = (
    "reload_successful",
    "reload_last_success_timestamp_seconds",
    "certificate_expiry_timestamp_seconds",
)


def certificate(ends: datetime) -> tuple[bytes, bytes]:
    """PEM of a certificate and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Clock:
    """Unix seconds, set by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scraped:
    """What the metrics of these files say."""

    def __init__(self, files: Files) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(FileMetrics(files))

    def __call__(self, metric: str) -> dict[str, float]:
        families = {family.name: family for family in self._registry.collect()}
        return {s.labels["file"]: s.value for s in families[f"agentidp_analytics_{metric}"].samples}


def renew(directory: Path, ends: datetime) -> None:
    cert, key = certificate(ends)
    (directory / "cert.pem").write_bytes(cert)
    (directory / "key.pem").write_bytes(key)


def test_files_that_are_not_given_have_no_sample() -> None:
    scraped = Scraped(Files())
    assert [scraped(metric) for metric in (WORKED, READ_AT, ENDS)] == [{}, {}, {}]


def test_the_labels_are_a_closed_set(tmp_path: Path) -> None:
    renew(tmp_path, FIRST)
    (tmp_path / "tokens").write_text(TOKEN)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    scraped = Scraped(
        Files(
            sources=SourceTokens(tmp_path / "tokens"),
            certificate=ServerCertificate(tmp_path / "cert.pem", tmp_path / "key.pem"),
            web_config=WebConfig(tmp_path / "web.yml"),
        )
    )
    assert scraped(WORKED) == {"ingest_token_file": 1, "tls_cert": 1, "web_config_file": 1}
    assert set(scraped(READ_AT)) == set(scraped(WORKED))
    assert scraped(ENDS) == {"tls_cert": FIRST.timestamp(), "web_config": FIRST.timestamp()}


def test_a_token_file_that_breaks_and_is_mended(tmp_path: Path) -> None:
    path, clock = tmp_path / "tokens", Clock()
    path.write_text(TOKEN)
    sources = SourceTokens(path, clock)
    scraped = Scraped(Files(sources=sources))
    for number, broken in enumerate(("a b c", "", None), 1):
        clock.now += 10
        path.write_text(broken) if broken is not None else path.unlink()
        for _ in range(2):  # also at the second look, when nothing has changed
            assert scraped(WORKED) == {"ingest_token_file": 0}
            assert scraped(READ_AT) == {"ingest_token_file": 1000.0}
        assert sources.find(TOKEN) is not None, number
    clock.now = 2000.0
    path.write_text(TOKEN + "-2")
    assert scraped(WORKED) == {"ingest_token_file": 1}
    assert scraped(READ_AT) == {"ingest_token_file": 2000.0}
    assert sources.find(TOKEN) is None


def test_a_certificate_of_the_api_is_the_one_in_use(tmp_path: Path) -> None:
    clock = Clock()
    renew(tmp_path, FIRST)
    scraped = Scraped(Files(certificate=ServerCertificate(tmp_path / "cert.pem", tmp_path / "key.pem", clock)))
    clock.now = 2000.0
    # Half of a renewal: what is presented is still the first one.
    cert, key = certificate(SECOND)
    (tmp_path / "cert.pem").write_bytes(cert)
    assert (scraped(WORKED), scraped(READ_AT)) == ({"tls_cert": 0}, {"tls_cert": 1000.0})
    assert scraped(ENDS) == {"tls_cert": FIRST.timestamp()}
    (tmp_path / "key.pem").write_bytes(key)
    assert (scraped(WORKED), scraped(READ_AT)) == ({"tls_cert": 1}, {"tls_cert": 2000.0})
    assert scraped(ENDS) == {"tls_cert": SECOND.timestamp()}


def test_a_certificate_of_the_exporter_is_the_one_in_use(tmp_path: Path) -> None:
    clock = Clock()
    renew(tmp_path, FIRST)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    scraped = Scraped(Files(web_config=WebConfig(tmp_path / "web.yml", clock)))
    clock.now = 2000.0
    (tmp_path / "cert.pem").write_bytes(b"nonsense")
    assert (scraped(WORKED), scraped(READ_AT)) == ({"web_config_file": 0}, {"web_config_file": 1000.0})
    assert scraped(ENDS) == {"web_config": FIRST.timestamp()}
    renew(tmp_path, SECOND)
    assert (scraped(WORKED), scraped(READ_AT)) == ({"web_config_file": 1}, {"web_config_file": 2000.0})
    assert scraped(ENDS) == {"web_config": SECOND.timestamp()}
    # As certbot does it: other files, and the configuration names them.
    newer = tmp_path / "newer"
    newer.mkdir()
    renew(newer, FIRST)
    (newer / "web.yml").write_text("tls_server_config: {cert_file: newer/cert.pem, key_file: newer/key.pem}")
    os.replace(newer / "web.yml", tmp_path / "web.yml")  # noqa: PTH105 - what a mounted secret does
    assert scraped(ENDS) == {"web_config": FIRST.timestamp()}


def test_a_web_configuration_without_tls_has_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text("")
    scraped = Scraped(Files(web_config=WebConfig(tmp_path / "web.yml")))
    assert (scraped(WORKED), scraped(ENDS)) == ({"web_config_file": 1}, {})
    renew(tmp_path, FIRST)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    assert (scraped(WORKED), scraped(ENDS)) == ({"web_config_file": 0}, {})  # that needs a restart


def test_the_first_certificate_of_a_file_is_the_servers_own() -> None:
    chain = certificate(FIRST - timedelta(days=300))[0]
    own, key = certificate(FIRST)
    assert ends_at(own + chain) == FIRST.timestamp()
    assert ends_at(b"# renewed by hand\n" + key + own + chain) == FIRST.timestamp()
    assert ends_at(b"no certificate") is None


def test_a_running_service_tells_of_a_token_file_that_nobody_has_used_yet(tmp_path: Path) -> None:
    with Service(tmp_path) as service:

        def reload() -> str:
            _, _, body = request("GET", service.metrics_url + "/metrics", {})
            (value,) = re.findall(
                r'^agentidp_analytics_reload_successful\{file="ingest_token_file"\} (\S+)$', body.decode(), re.M
            )
            return str(value)

        assert reload() == "1.0"
        service.token_file.write_text("x y")
        assert reload() == "0.0"
        service.token_file.write_text(TOKEN)
        assert reload() == "1.0"
        _, _, body = request("GET", service.metrics_url + "/metrics", {})
        assert "retention_last_success_timestamp_seconds gauge" in body.decode()
        wait_for(
            lambda: b"\nagentidp_analytics_store_bytes " in request("GET", service.metrics_url + "/metrics", {})[2], 20
        )
        assert service.value("agentidp_analytics_store_parts") >= 1
        assert 0 < service.value("agentidp_analytics_store_free_ratio") <= 1
        assert service.value("agentidp_analytics_store_free_bytes") > 0
