"""The files that settings name: read, read again when they change, and what of that is shown as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from agentidp_analytics.budgets_file import BudgetsFile
from agentidp_analytics.settings import Settings
from exporter.web_config import WebConfig
from query_api.http.tls import ServerCertificate
from query_api.ingest.sources import SourceTokens
from query_api.settings import ApiSettings


class _ReadAgain(Protocol):
    """A file, with those that it names, that is read again when it has changed."""

    @property
    def reload_worked(self) -> bool: ...

    @property
    def read_at(self) -> float: ...

    def refresh(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that settings name, read."""

    sources: SourceTokens | None = None
    certificate: ServerCertificate | None = None
    web_config: WebConfig | None = None
    budgets: BudgetsFile | None = None

    @classmethod
    def read(cls, settings: Settings) -> Files:
        """Raises SourceTokensError, TlsFilesError, WebConfigError or BudgetsError for one that cannot be used."""
        api = settings.api if settings.tokens else ApiSettings()  # without the API, nobody uses its files
        return cls(
            sources=SourceTokens(api.ingest_token_file) if api.ingest_token_file else None,
            certificate=ServerCertificate(api.tls_cert, api.tls_key) if api.tls_cert and api.tls_key else None,
            web_config=WebConfig(settings.exporter.web_config_file) if settings.exporter.web_config_file else None,
            budgets=BudgetsFile(settings.budgets) if settings.budgets else None,
        )


_NAME: Final = "agentidp_analytics_"


class FileMetrics(Collector):
    """What became of the files, as of each scrape. A file that is not given has no sample.

    Each scrape looks at the files itself: a wrong one would else be known with the next sender or handshake only, and
    a service that nobody calls is the one that is restarted without thinking. A look is a `stat` for each. The exporter
    renders in the event loop, where all other looks are too: none comes between a change and its reading.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families, after a look at the files."""
        files: Mapping[str, _ReadAgain | None] = {
            "ingest_token_file": self._files.sources,
            "tls_cert": self._files.certificate,
            "web_config_file": self._files.web_config,
            "budgets": self._files.budgets,
        }
        worked = GaugeMetricFamily(
            f"{_NAME}reload_successful",
            "Whether the last attempt to read the file worked (1), or what was read before stays in use (0).",
            labels=["file"],
        )
        read_at = GaugeMetricFamily(
            f"{_NAME}reload_last_success_timestamp_seconds",
            "When what is in use of the file was read (Unix time).",
            labels=["file"],
        )
        for name, file in files.items():
            if file is not None:
                file.refresh()
                worked.add_metric([name], float(file.reload_worked))
                read_at.add_metric([name], file.read_at)
        yield worked
        yield read_at
        yield self._expiry()

    def _expiry(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            f"{_NAME}certificate_expiry_timestamp_seconds",
            "When the certificate that is presented ends (Unix time), without those of its chain.",
            labels=["file"],
        )
        for name, file in {"tls_cert": self._files.certificate, "web_config": self._files.web_config}.items():
            ends = ends_at(file.certificate) if file is not None and file.certificate is not None else None
            if ends is not None:
                family.add_metric([name], ends)
        return family


def ends_at(pem: bytes) -> float | None:
    """When the first certificate of a PEM file, which is the server's own, ends (Unix seconds).

    None for one that cannot be read: it is served all the same, OpenSSL takes more than X.509 allows.
    """
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:
        return None
