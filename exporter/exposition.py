"""The published fleet as bytes: text format 0.0.4 and OpenMetrics 1.0.0, plain and gzipped.

Three costs are avoided. Formatting: one `%` template holds the constant part of 1,000 lines. Compression: every
1,000 lines become a deflate piece that ends on a full flush; pieces of both formats and of several snapshots can
then be strung together into one gzip member, and a scrape only compresses what is its own. One member, because
curl stops reading after the first. And waiting: pieces are short, so a thread that renders them never keeps the
event loop from the interpreter lock for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Final

from isal import isal_zlib

from exporter.counters import PublishedFleet
from exporter.families import FAMILIES, Family
from exporter.negotiation import Format

_TENANTS_A_PIECE: Final = 1_000
_RAW_DEFLATE: Final = -15  # window bits: 32 KiB, no header or checksum around the stream (RFC 1951)
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # RFC 1952: deflate, no time, fastest, unknown OS


@dataclass(frozen=True, slots=True)
class Piece:
    """Some complete lines, as they are and as a byte-aligned part of a deflate stream that refers to no other part."""

    raw: bytes
    deflated: bytes
    crc32: int

    @classmethod
    def of(cls, raw: bytes, flush: int = isal_zlib.Z_FULL_FLUSH) -> Piece:
        """Compresses `raw`; with `isal_zlib.Z_FINISH` the piece can only be a stream's last."""
        stream = isal_zlib.compressobj(level=1, wbits=_RAW_DEFLATE)
        return cls(raw, stream.compress(raw) + stream.flush(flush), isal_zlib.crc32(raw))


class Body:
    """Pieces in order, ready to be followed by a scrape's own lines. Immutable."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = tuple(pieces)
        self._gzip_start = b"".join((_GZIP_HEADER, *(piece.deflated for piece in self._pieces)))
        self._crc32 = self._size = 0
        for piece in self._pieces:
            self._crc32 = isal_zlib.crc32_combine(self._crc32, piece.crc32, len(piece.raw))
            self._size += len(piece.raw)

    def plain(self, last: bytes) -> list[bytes]:
        """The body followed by `last`, in parts."""
        return [*(piece.raw for piece in self._pieces), last]

    def gzipped(self, last: bytes) -> list[bytes]:
        """The body followed by `last` as one gzip member (RFC 1952), in parts."""
        end = Piece.of(last, isal_zlib.Z_FINISH)
        crc32 = isal_zlib.crc32_combine(self._crc32, end.crc32, len(last))
        size = (self._size + len(last)) & 0xFFFF_FFFF
        return [self._gzip_start, end.deflated + crc32.to_bytes(4, "little") + size.to_bytes(4, "little")]


EMPTY: Final = Body(())


class Exposition:
    """Renders fleets one after the other. Not thread-safe: it keeps the templates and pieces of the last one."""

    def __init__(self) -> None:
        self._samples = [(family, _FamilyLines(family)) for family in FAMILIES]
        self._metadata = {format_: [Piece.of(metadata(family, format_)) for family in FAMILIES] for format_ in Format}

    def render(self, fleet: PublishedFleet, more: Mapping[Format, Sequence[Piece]] | None = None) -> dict[Format, Body]:
        """The bodies of all families for `fleet`, and `more` families after them.

        The `# EOF` of OpenMetrics comes with what follows them.
        """
        samples = [
            list(lines.render(*_with_samples(fleet.tenant_id, getattr(fleet, family.column))))
            for family, lines in self._samples
        ]
        return {
            format_: Body(
                chain(
                    (piece for first, rest in zip(pieces, samples, strict=True) for piece in (first, *rest)),
                    more[format_] if more else (),
                )
            )
            for format_, pieces in self._metadata.items()
        }


class _Chunk:
    """The lines of up to 1,000 tenants in one family, kept until their tenants or values change."""

    def __init__(self, family: Family, tenant_ids: list[str]) -> None:
        self.tenant_ids = tenant_ids
        self._template = "".join(
            f'{family.sample_name}{{tenant_id="{escape_label(tenant_id).replace("%", "%%")}"}} {family.conversion}\n'
            for tenant_id in tenant_ids
        ).encode()
        self._values: list[float] = []
        self._piece: Piece | None = None

    def render(self, values: list[float]) -> Piece:
        if self._piece is None or values != self._values:
            self._values = values
            self._piece = Piece.of(self._template % tuple(values))
        return self._piece


class _FamilyLines:
    """The sample lines of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._chunks: list[_Chunk] = []

    def render(self, tenant_ids: list[str], values: list[float]) -> Iterator[Piece]:
        starts = range(0, len(tenant_ids), _TENANTS_A_PIECE)
        del self._chunks[len(starts) :]
        for number, start in enumerate(starts):
            chunk_ids = tenant_ids[start : start + _TENANTS_A_PIECE]
            if number == len(self._chunks):
                self._chunks.append(_Chunk(self._family, chunk_ids))
            elif self._chunks[number].tenant_ids != chunk_ids:
                self._chunks[number] = _Chunk(self._family, chunk_ids)
            yield self._chunks[number].render(values[start : start + _TENANTS_A_PIECE])


def _with_samples(tenant_ids: list[str], values: list[float | None]) -> tuple[list[str], list[float]]:
    """Both columns without the rows that have no sample."""
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(values):
        return tenant_ids, numbers
    return list(compress(tenant_ids, [value is not None for value in values])), numbers


def metadata(family: Family, format_: Format) -> bytes:
    """The HELP and TYPE lines of `family`."""
    if format_ is Format.OPENMETRICS:
        return (
            f"# HELP {family.name} {escape_label(family.documentation)}\n# TYPE {family.name} {family.kind}\n".encode()
        )
    documentation = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {family.sample_name} {documentation}\n# TYPE {family.sample_name} {family.kind}\n".encode()


def escape_label(value: str) -> str:
    """`value` as it stands between the quotes of a label; the HELP text of OpenMetrics has the same rule."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
