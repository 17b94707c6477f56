"""An issuer for tests: key pairs, a key-set server, good tokens and a suite of hostile ones for any base URL.

`attacks()` and `controls()` list requests with the status that each must get; `send()` puts one on the wire byte by
byte (an HTTP client would refuse to), and `complaints()` says what is wrong with the answer. Nothing here imports the
code under test.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

ABSENT: Final = object()  # as the value of a claim or a header: leave the member out
_ALGORITHMS: Final = get_default_algorithms()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public half of `key` as a JWK with `members` added (or left out, if ABSENT)."""
    algorithm = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256", ed25519.Ed25519PrivateKey: "EdDSA"}
    name = next(name for kind, name in algorithm.items() if isinstance(key, kind))
    jwk = json.loads(_ALGORITHMS[name].to_jwk(key.public_key()))
    jwk.pop("key_ops", None)
    return {name: value for name, value in {**jwk, "use": "sig", **members}.items() if value is not ABSENT}


def private_jwk(key: rsa.RSAPrivateKey, **members: Any) -> dict[str, Any]:
    jwk: dict[str, Any] = json.loads(_ALGORITHMS["RS256"].to_jwk(key))
    jwk.pop("key_ops")
    return {**jwk, "use": "sig", **members}


def sign(key: Any, alg: str, text: str) -> bytes:
    """The signature of `text` by `alg`; a key of bytes is used for HMAC whatever it looks like."""
    if isinstance(key, bytes):
        return hmac.new(key, text.encode(), {"HS256": hashlib.sha256, "HS512": hashlib.sha512}[alg]).digest()
    return bytes(_ALGORITHMS[alg].sign(text.encode(), key))


class Issuer:
    """An identity provider: its keys, its key set with every kind of key that must be refused, and its tokens."""

    def __init__(
        self, url: str = "https://idp.example", audience: str = "https://analytics.example", tenant: str = "org-1"
    ) -> None:
        self.url = url
        self.audience = audience
        self.tenant = tenant
        self.tenant_claim = "organization_id"
        self.scope = "analytics:read"
        self.main = rsa_key()
        self.next = rsa_key()
        self.unfit = rsa_key()
        self.weak = rsa_key(1024)
        self.stranger = rsa_key()  # never published
        self.curve = ec.generate_private_key(ec.SECP256R1())
        self.edwards = ed25519.Ed25519PrivateKey.generate()
        self.shared_secret = b"a secret that was published, 32+"

    def jwks(self) -> dict[str, Any]:
        return {
            "keys": [
                public_jwk(self.main, kid="main", alg="RS256"),
                public_jwk(self.next, kid="next"),
                public_jwk(self.curve, kid="curve", alg="ES256"),
                public_jwk(self.edwards, kid="edwards"),
                public_jwk(self.weak, kid="weak"),
                public_jwk(self.unfit, kid="encryption", use="enc"),
                public_jwk(self.unfit, kid="no-verify", use=ABSENT, key_ops=["sign"]),
                public_jwk(self.unfit, kid="rs512-only", alg="RS512"),
                public_jwk(self.unfit, kid="twin"),
                public_jwk(self.unfit, kid="twin"),
                private_jwk(self.unfit, kid="leaked"),
                {"kty": "oct", "kid": "shared", "use": "sig", "alg": "HS256", "k": b64(self.shared_secret)},
            ]
        }

    def claims(self, now: float, **changes: Any) -> dict[str, Any]:
        """The claims of a good token issued at `now`, with `changes`."""
        claims = {
            "iss": self.url,
            "aud": self.audience,
            "sub": "agent-1",
            "client_id": "agent-1",
            "jti": "q3Zb0o",
            "iat": int(now),
            "exp": int(now) + 600,
            "scope": self.scope,
            self.tenant_claim: self.tenant,
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not ABSENT}

    def header(self, **changes: Any) -> dict[str, Any]:
        header = {"alg": "RS256", "typ": "at+jwt", "kid": "main", **changes}
        return {name: value for name, value in header.items() if value is not ABSENT}

    def compact(self, header: bytes | str, payload: bytes | str, key: Any = None, alg: str = "RS256") -> str:
        """A token, signed as it stands: bytes are encoded first, a str is taken as an encoded segment."""
        text = ".".join(part if isinstance(part, str) else b64(part) for part in (header, payload))
        return f"{text}.{b64(sign(key or self.main, alg, text))}"

    def token(self, now: float, header: Mapping[str, Any] | None = None, key: Any = None, **changes: Any) -> str:
        """A good token but for the changes of `header` and of claims; signed with `key` by the header's algorithm."""
        members = self.header(**(header or {}))
        alg = members.get("alg")
        signed_by = alg if isinstance(alg, str) and alg in _ALGORITHMS and alg != "none" else "RS256"
        return self.compact(to_json(members), to_json(self.claims(now, **changes)), key, signed_by)


@dataclass(frozen=True)
class Attack:
    """One request. `number` is the class in docs/attacks.md (0: a control), `target` is put behind the path."""

    number: int
    name: str
    headers: tuple[tuple[str, bytes], ...]
    expected: frozenset[int]
    target: str = ""
    body: bytes = b""

    @property
    def id(self) -> str:
        return f"{self.number:02}-{self.name}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def send(host: str, port: int, path: str, attack: Attack) -> Answer:
    """Sends the request of `attack` to `path` and reads the answer to its end."""
    target = attack.target.replace("?", "&") if "?" in path else attack.target  # behind what the path needs itself
    lines = [f"GET {path}{target} HTTP/1.1".encode(), f"Host: {host}:{port}".encode(), b"Connection: close"]
    lines += [name.encode() + b": " + value for name, value in attack.headers]
    if attack.body:
        lines.append(f"Content-Length: {len(attack.body)}".encode())
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"\r\n".join([*lines, b"", attack.body]))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *fields = head.decode("latin-1").split("\r\n")
    headers = dict(field.lower().split(": ", 1)[:1] + field.split(": ", 1)[1:] for field in fields)
    return Answer(int(status.split()[1]), headers, body)


def complaints(attack: Attack, answer: Answer, tenant: str) -> list[str]:
    """What breaks the contract in the `answer` to `attack`; `tenant` is the only one a good answer may be about."""
    found = []
    if answer.status not in attack.expected:
        found.append(f"status {answer.status}, not {sorted(attack.expected)}")
    for name, value in attack.headers:
        for piece in value.decode("latin-1").replace(" ", ".").split("."):
            if len(piece) > 16 and piece.encode("latin-1") in answer.body + repr(answer.headers).encode():
                found.append(f"the answer repeats a piece of the header {name}")
    try:
        body = json.loads(answer.body)
    except ValueError:
        return [*found, f"the body is not JSON: {answer.body[:80]!r}"]
    if answer.status == 200:
        return found if body.get("tenantId") == tenant else [*found, f"tenant {body.get('tenantId')!r}"]
    code = {400: "VALIDATION_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 503: "UNAVAILABLE"}.get(answer.status)
    if body.get("code") != code or not isinstance(body.get("message"), str) or body.keys() - {"details"} != _ENVELOPE:
        found.append(f"the envelope is {body}")
    challenge = answer.headers.get("www-authenticate", "")
    if answer.status in (401, 403) and not challenge.startswith('Bearer realm="'):
        found.append(f"the challenge is {challenge!r}")
    return found


_ENVELOPE: Final = {"code", "message"}


def bearer(token: str) -> tuple[tuple[str, bytes], ...]:
    return (("Authorization", b"Bearer " + token.encode()),)


def controls(issuer: Issuer, now: float) -> list[Attack]:
    """Good requests: what refuses these refuses too much."""
    good = issuer.token(now)
    tokens = {
        "at-jwt": good,
        "application-at-jwt": issuer.token(now, {"typ": "application/at+jwt"}),
        "typ-in-capitals": issuer.token(now, {"typ": "AT+JWT"}),
        "jwt": issuer.token(now, {"typ": "JWT"}),
        "jwt-with-few-claims": issuer.token(now, {"typ": "JWT"}, sub=ABSENT, jti=ABSENT, client_id=ABSENT),
        "second-key": issuer.token(now, {"kid": "next"}, issuer.next),
        "audience-list": issuer.token(now, aud=["https://other.example", issuer.audience]),
        "fractional-times": issuer.token(now, iat=now - 1.5, exp=now + 60.25, nbf=now - 0.5),
        "whole-day": issuer.token(now, iat=int(now) - 3600, exp=int(now) + 23 * 3600),
        "more-scopes": issuer.token(now, scope=f"openid {issuer.scope} x"),
        "unknown-members": issuer.token(now, {"x5t": "abc", "colour": 1}, act={"sub": "x"}, colour=["red"]),
        "access-by-name": issuer.token(now, token_use="access", typ="Bearer"),
    }
    cases = [Attack(0, name, bearer(token), _OK) for name, token in tokens.items()]
    cases.append(Attack(0, "lower-case-scheme", (("authorization", b"bearer " + good.encode()),), _OK))
    return cases


_OK: Final = frozenset({200})
_UNAUTHORIZED: Final = frozenset({401})
_FORBIDDEN: Final = frozenset({403})


def attacks(issuer: Issuer, now: float, elsewhere: str = "http://127.0.0.1:9/jwks") -> list[Attack]:
    """Every hostile request. `now` is the service's time; `elsewhere` is a URL that must never be asked.

    The service must know `issuer.url`, `issuer.audience`, RS256 only, `issuer.scope` as the required scope and
    `issuer.tenant_claim`; its key set is `issuer.jwks()`.
    """
    cases = list(_request_attacks(issuer, now))
    for number, expected, tokens in (
        (6, 401, _algorithm_attacks(issuer, now)),
        (7, 401, _public_key_as_secret(issuer, now)),
        (8, 401, _published_secret(issuer, now)),
        (9, 401, _other_algorithms(issuer, now)),
        (10, 401, _signatures(issuer, now)),
        (11, 401, _own_keys(issuer, now, elsewhere)),
        (12, 401, _key_names(issuer, now)),
        (13, 401, _unfit_keys(issuer, now)),
        (14, 401, _critical_headers(issuer, now)),
        (15, 401, _spellings(issuer, now)),
        (16, 401, _paddings(issuer, now)),
        (19, 401, _times(issuer, now)),
        (20, 401, _lifetimes(issuer, now)),
        (21, 401, _issuers(issuer, now)),
        (22, 401, _audiences(issuer, now)),
        (23, 401, _required_claims(issuer, now)),
        (24, 401, _other_kinds(issuer, now)),
        (25, 401, _bound_tokens(issuer, now)),
        (26, 401, _repeated_members(issuer, now)),
        (27, 403, _tenants(issuer, now)),
        (28, 403, _scopes(issuer, now)),
    ):
        cases += [Attack(number, name, bearer(token), frozenset({expected})) for name, token in tokens.items()]
    # A server may stop at its limit for a header line before anybody looks at the token.
    long = issuer.token(now, colour="r" * 6200)
    return [*cases, Attack(18, "long", bearer(long), frozenset({400, 401, 431}))]


def _request_attacks(issuer: Issuer, now: float) -> Iterator[Attack]:
    token = issuer.token(now)
    good = b"Bearer " + token.encode()

    def refused(number: int, name: str, *values: bytes) -> Attack:
        return Attack(number, name, tuple(("Authorization", value) for value in values), _UNAUTHORIZED)

    yield refused(1, "no-header")
    yield refused(1, "empty-header", b"")
    yield refused(1, "basic", b"Basic YWdlbnQtMTpzZWNyZXQ=")
    yield refused(1, "dpop-scheme", b"DPoP " + token.encode())
    yield refused(1, "no-scheme", token.encode())
    yield Attack(1, "proxy-authorization", (("Proxy-Authorization", good),), _UNAUTHORIZED)
    yield refused(2, "scheme-alone", b"Bearer")
    yield refused(2, "two-words", b"Bearer a b")
    yield refused(2, "two-tokens", good + b" " + token.encode())
    yield refused(2, "comma-list", good + b", " + good)
    yield refused(2, "two-spaces", b"Bearer  " + token.encode())
    yield refused(2, "tab", b"Bearer\t" + token.encode())
    yield refused(2, "equals-sign", b"Bearer=" + token.encode())
    yield refused(2, "quoted", b'Bearer "' + token.encode() + b'"')
    yield refused(2, "semicolon", good + b";")
    for name, values in {"two-headers": (good, good), "good-then-basic": (good, b"Basic YQ==")}.items():
        yield Attack(3, name, tuple(("Authorization", value) for value in values), frozenset({400}))
    mixed = (("Authorization", good), ("AUTHORIZATION", b"Bearer x.y.z"))
    yield Attack(3, "two-spellings-of-the-name", mixed, frozenset({400}))
    yield Attack(4, "token-in-query", (), _UNAUTHORIZED, target=f"?access_token={token}")
    form = (("Content-Type", b"application/x-www-form-urlencoded"),)
    yield Attack(4, "token-in-body", form, _UNAUTHORIZED, body=b"access_token=" + token.encode())
    yield Attack(4, "token-in-cookie", (("Cookie", b"access_token=" + token.encode()),), _UNAUTHORIZED)
    for name in ("X-Organization-Id", "X-Tenant-Id", "organization_id"):
        yield Attack(5, name.lower(), (("Authorization", good), (name, b"org-2")), _OK)
    for name in ("tenantId", "organization_id"):
        # A service may refuse the unknown parameter, but must not obey it.
        yield Attack(5, f"{name.lower()}-in-query", bearer(token), frozenset({200, 400}), target=f"?{name}=org-2")
    yield refused(17, "byte-ff-last", good + b"\xff")
    yield refused(17, "byte-ff-first", b"Bearer \xff" + token.encode())
    yield refused(17, "byte-ff-inside", good[:40] + b"\xff" + good[40:])
    yield refused(17, "utf-8", b"Bearer " + "ключ.ключ.ключ".encode())
    yield refused(17, "byte-ff-in-scheme", b"Bearer\xff " + token.encode())


def _algorithm_attacks(issuer: Issuer, now: float) -> dict[str, str]:
    payload = to_json(issuer.claims(now))
    unsigned = {
        f"{alg}-unsigned": f"{b64(to_json(issuer.header(alg=alg)))}.{b64(payload)}." for alg in ("none", "nOnE")
    }
    values = {
        "none": "none",
        "none-in-capitals": "NONE",
        "missing": ABSENT,
        "list": ["RS256"],
        "null": None,
        "number": 256,
        "object": {"RS256": 1},
        "empty": "",
        "lower-case": "rs256",
        "trailing-space": "RS256 ",
    }
    return unsigned | {f"alg-{name}": issuer.token(now, {"alg": alg}) for name, alg in values.items()}


def _public_key_as_secret(issuer: Issuer, now: float) -> dict[str, str]:
    public = issuer.main.public_key()
    secrets = {
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "pkcs1-pem": public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "jwk": to_json(public_jwk(issuer.main)),
        "empty": b"\0",
    }
    return {f"hs256-{name}": issuer.token(now, {"alg": "HS256"}, secret) for name, secret in secrets.items()}


def _published_secret(issuer: Issuer, now: float) -> dict[str, str]:
    return {
        "oct-key": issuer.token(now, {"alg": "HS256", "kid": "shared"}, issuer.shared_secret),
        "oct-key-hs512": issuer.token(now, {"alg": "HS512", "kid": "shared"}, issuer.shared_secret),
        "oct-key-named-rs256": issuer.token(now, {"kid": "shared"}),
    }


def _other_algorithms(issuer: Issuer, now: float) -> dict[str, str]:
    tokens = {alg.lower(): issuer.token(now, {"alg": alg}) for alg in ("RS384", "RS512", "PS256")}
    return tokens | {
        "es256": issuer.token(now, {"alg": "ES256", "kid": "curve"}, issuer.curve),
        "eddsa": issuer.token(now, {"alg": "EdDSA", "kid": "edwards"}, issuer.edwards),
        "rs256-with-ec-kid": issuer.token(now, {"kid": "curve"}),
        "rs256-with-rs512-key": issuer.token(now, {"kid": "rs512-only"}, issuer.unfit),
        "es256-signature-named-rs256": issuer.compact(
            to_json(issuer.header(kid="curve")), to_json(issuer.claims(now)), issuer.curve, "ES256"
        ),
    }


def _signatures(issuer: Issuer, now: float) -> dict[str, str]:
    good = issuer.token(now)
    header, payload, signature = good.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    edited = b64(to_json(issuer.claims(now, **{issuer.tenant_claim: "org-2"})))
    return {
        "strangers-key": issuer.token(now, key=issuer.stranger),
        "other-published-key": issuer.token(now, key=issuer.next),
        "edited-payload": f"{header}.{edited}.{signature}",
        "edited-header": f"{b64(to_json(issuer.header(typ='JWT')))}.{payload}.{signature}",
        "empty-signature": f"{header}.{payload}.",
        "one-bit": f"{header}.{payload}.{b64(bytes([raw[0] ^ 1]) + raw[1:])}",
        "cut-short": f"{header}.{payload}.{b64(raw[:-1])}",
        "one-byte-more": f"{header}.{payload}.{b64(raw + bytes(1))}",
        "leading-zero": f"{header}.{payload}.{b64(bytes(1) + raw)}",
        "zeros": f"{header}.{payload}.{b64(bytes(256))}",
        "of-another-token": f"{header}.{payload}.{issuer.token(now, jti='other').split('.')[2]}",
        "of-the-payload-only": f"{header}.{payload}.{b64(sign(issuer.main, 'RS256', payload))}",
    }


def _own_keys(issuer: Issuer, now: float, elsewhere: str) -> dict[str, str]:
    own = {
        "jwk": public_jwk(issuer.stranger, kid="main"),
        "jku": elsewhere,
        "x5u": elsewhere,
        "x5c": ["MIIB"],
    }
    strangers = {name: issuer.token(now, {name: value}, issuer.stranger) for name, value in own.items()}
    unknown = {f"{name}-new-kid": issuer.token(now, {name: own[name], "kid": "own"}, issuer.stranger) for name in own}
    return strangers | unknown | {f"{name}-good-signature": issuer.token(now, {name: own[name]}) for name in own}


def _key_names(issuer: Issuer, now: float) -> dict[str, str]:
    names = {
        "missing": ABSENT,
        "unknown": "nobody-has-this-key",
        "traversal": "../../../../../../dev/null",
        "crlf": "main\r\nX-Injected: yes-it-was",
        "newline": "main\n",
        "nul": "main\0",
        "lone-surrogate": "main\ud800",
        "sql": "main' UNION SELECT 'key",
        "empty": "",
        "number": 1,
        "null": None,
        "list": ["main"],
        "object": {"main": 1},
        "long": "k" * 300,
        "capitals": "MAIN",
    }
    return {f"kid-{name}": issuer.token(now, {"kid": kid}) for name, kid in names.items()}


def _unfit_keys(issuer: Issuer, now: float) -> dict[str, str]:
    tokens = {f"{kid}-key": issuer.token(now, {"kid": kid}, issuer.unfit) for kid in ("encryption", "no-verify")}
    tokens |= {f"{kid}-key": issuer.token(now, {"kid": kid}, issuer.unfit) for kid in ("twin", "leaked")}
    return tokens | {"1024-bit-key": issuer.token(now, {"kid": "weak"}, issuer.weak)}


def _critical_headers(issuer: Issuer, now: float) -> dict[str, str]:
    headers: dict[str, dict[str, Any]] = {
        "crit-unknown": {"crit": ["http://idp.example/undefined"], "http://idp.example/undefined": True},
        "crit-known": {"crit": ["kid"]},
        "crit-empty": {"crit": []},
        "crit-null": {"crit": None},
        "b64-true": {"b64": True},
        "b64-false": {"b64": False, "crit": ["b64"]},
        "zip": {"zip": "DEF"},
        "enc": {"enc": "A256GCM"},
    }
    tokens = {name: issuer.token(now, header) for name, header in headers.items()}
    header = b64(to_json(issuer.header(b64=False, crit=["b64"])))
    payload = to_json(issuer.claims(now)).decode()
    signature = b64(sign(issuer.main, "RS256", f"{header}.{payload}"))
    return tokens | {"b64-false-detached": f"{header}..{signature}"}


def _spellings(issuer: Issuer, now: float) -> dict[str, str]:
    good = issuer.token(now)
    header, payload, signature = good.split(".")
    header_json, payload_json = to_json(issuer.header()), to_json(issuer.claims(now))
    tokens = {
        "one-segment": header,
        "two-segments": f"{header}.{payload}",
        "four-segments": f"{good}.{signature}",
        "five-segments": f"{header}.{payload}.{signature}.{payload}.{signature}",
        "leading-dot": f".{good}",
        "trailing-dot": f"{good}.",
        "empty-header": f".{payload}.{signature}",
        "empty-payload": f"{header}..{signature}",
        "only-dots": "..",
        "exclamation-marks": f"{header}.!!!!.{signature}",
        "standard-alphabet": f"{header}.{payload}.+/{signature[2:]}",
        "stray-bits-signature": good[:-1] + _next_letter(good[-1]),
        "impossible-length": f"{good}AAA" if len(signature) % 4 == 2 else f"{good}A",
    }
    headers = {
        "list": to_json([issuer.header()]),
        "string": to_json("RS256"),
        "number": b"1",
        "not-json": b"alg=RS256",
        "nan": header_json[:-1] + b',"x":NaN}',
        "trailing-text": header_json + b"{}",
        "utf-16": header_json.decode().encode("utf-16"),
        "byte-order-mark": b"\xef\xbb\xbf" + header_json,
        "single-quotes": header_json.replace(b'"', b"'"),
        "deep": header_json[:-1] + b',"x":' + b"[" * 1500 + b"]" * 1500 + b"}",
    }
    tokens |= {f"header-{name}": issuer.compact(data, payload_json) for name, data in headers.items()}
    payloads = {
        "list": b"[" + payload_json + b"]",
        "string": to_json("claims"),
        "null": b"null",
        "not-json": b"sub=agent-1",
        "nan": payload_json[:-1] + b',"x":NaN}',
        "infinity": payload_json[:-1] + b',"x":-Infinity}',
        "overflow": payload_json[:-1] + b',"x":1e999}',
        "5000-digits": payload_json[:-1] + b',"x":' + b"9" * 5000 + b"}",
        "deep": payload_json[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
        "deep-100": payload_json[:-1] + b',"x":' + b'{"x":' * 100 + b"1" + b"}" * 100 + b"}",
        "invalid-utf-8": payload_json[:-1] + b',"x":"\xff"}',
        "encoded-surrogate": payload_json[:-1] + b',"x":"\xed\xa0\x80"}',
        "utf-16": payload_json.decode().encode("utf-16"),
        "utf-32": payload_json.decode().encode("utf-32"),
        "byte-order-mark": b"\xef\xbb\xbf" + payload_json,
        "trailing-text": payload_json + b" x",
        "trailing-comma": payload_json[:-1] + b",}",
        "raw-control-character": payload_json[:-1] + b',"x":"\n"}',
        "another-token": good.encode(),
    }
    tokens |= {f"payload-{name}": issuer.compact(header_json, data) for name, data in payloads.items()}
    for name, parts in {"header": (_stray(header_json), payload), "payload": (header, _stray(payload_json))}.items():
        tokens[f"stray-bits-{name}"] = issuer.compact(*parts)
    return tokens


def _next_letter(letter: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(letter) + 1]


def _stray(data: bytes) -> str:
    """`data` in base64url with a bit set that decoders drop; blanks make room for it."""
    while len(data) % 3 == 0:
        data += b" "
    text = b64(data)
    return text[:-1] + _next_letter(text[-1])


def _padded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data + b" " * (1 + -len(data) % 3)).decode()


def _paddings(issuer: Issuer, now: float) -> dict[str, str]:
    good = issuer.token(now)
    header, payload, _ = good.split(".")
    header_json, payload_json = to_json(issuer.header()), to_json(issuer.claims(now))
    return {
        "signature-one": f"{good}=",
        "signature-two": f"{good}==",
        "signature-percent": f"{good}%3D%3D",
        "header": issuer.compact(_padded(header_json), payload),
        "payload": issuer.compact(header, _padded(payload_json)),
    }


def _times(issuer: Issuer, now: float) -> dict[str, str]:
    whole = int(now)
    times: dict[str, dict[str, Any]] = {
        "expired-a-second-ago": {"iat": whole - 600, "exp": whole - 1},
        "expires-now": {"iat": whole - 600, "exp": whole},
        "expired-long-ago": {"iat": whole - 86_400, "exp": whole - 80_000},
        "nbf-in-the-future": {"nbf": whole + 300},
        "nbf-fraction-ahead": {"nbf": whole + 300.5},
        "iat-in-the-future": {"iat": whole + 300, "exp": whole + 600},
        "milliseconds": {"iat": whole * 1000, "exp": whole * 1000 + 600_000},
    }
    return {name: issuer.token(now, **changes) for name, changes in times.items()}


def _lifetimes(issuer: Issuer, now: float) -> dict[str, str]:
    whole = int(now)
    values: dict[str, Any] = {
        "missing": ABSENT,
        "null": None,
        "string": str(whole + 600),
        "9999999999-string": "9999999999",
        "true": True,
        "list": [whole + 600],
        "object": {"seconds": whole + 600},
        "negative": -1,
        "zero": 0,
        "in-10-years": whole + 315_360_000,
        "in-25-hours": whole + 90_000,
        "1e300": 1e300,
        "400-digits": 10**400,
    }
    tokens = {f"exp-{name}": issuer.token(now, exp=exp) for name, exp in values.items()}
    tokens |= {f"iat-{name}": issuer.token(now, iat=values[name]) for name in ("null", "string", "true", "1e300")}
    tokens |= {f"nbf-{name}": issuer.token(now, nbf=values[name]) for name in ("null", "string", "true", "400-digits")}
    tokens["iat-ages-ago"] = issuer.token(now, iat=1)
    tokens["jwt-exp-missing"] = issuer.token(now, {"typ": "JWT"}, exp=ABSENT)
    tokens["jwt-exp-in-10-years"] = issuer.token(now, {"typ": "JWT"}, exp=whole + 315_360_000)
    return tokens


def _issuers(issuer: Issuer, now: float) -> dict[str, str]:
    values = {
        "missing": ABSENT,
        "null": None,
        "empty": "",
        "other": "https://evil.example",
        "prefix": issuer.url[:-1],
        "longer": f"{issuer.url}.evil.example",
        "trailing-slash": f"{issuer.url}/",
        "capitals": issuer.url.upper(),
        "http": issuer.url.replace("https", "http"),
        "trailing-space": f"{issuer.url} ",
        "trailing-nul": f"{issuer.url}\0",
        "list": [issuer.url],
        "object": {issuer.url: True},
        "number": 1,
    }
    tokens = {f"iss-{name}": issuer.token(now, iss=iss) for name, iss in values.items()}
    return tokens | {"jwt-iss-missing": issuer.token(now, {"typ": "JWT"}, iss=ABSENT)}


def _audiences(issuer: Issuer, now: float) -> dict[str, str]:
    values = {
        "missing": ABSENT,
        "null": None,
        "empty": "",
        "empty-list": [],
        "other": "https://evil.example",
        "longer": f"{issuer.audience}.evil.example",
        "prefix": issuer.audience[:-1],
        "capitals": issuer.audience.upper(),
        "numbers": [1, 2],
        "good-and-number": [issuer.audience, 1],
        "good-and-null": [issuer.audience, None],
        "nested-list": [[issuer.audience]],
        "object": {issuer.audience: True},
        "two-in-one-string": f"{issuer.audience} https://other.example",
    }
    tokens = {f"aud-{name}": issuer.token(now, aud=aud) for name, aud in values.items()}
    return tokens | {"jwt-aud-missing": issuer.token(now, {"typ": "JWT"}, aud=ABSENT)}


def _required_claims(issuer: Issuer, now: float) -> dict[str, str]:
    without: dict[str, dict[str, Any]] = {name: {name: ABSENT} for name in ("sub", "client_id", "jti", "iat")}
    tokens = {f"{name}-missing": issuer.token(now, **changes) for name, changes in without.items()}
    for name in ("sub", "client_id", "jti"):
        values = {
            "empty": "",
            "blank": "  ",
            "null": None,
            "number": 7,
            "list": ["agent-1"],
            "lone-surrogate": "\ud800",
        }
        wrong: dict[str, dict[str, Any]] = {f"{name}-{kind}": {name: value} for kind, value in values.items()}
        tokens |= {case: issuer.token(now, **changes) for case, changes in wrong.items()}
    tokens["jwt-iat-missing"] = issuer.token(now, {"typ": "JWT"}, iat=ABSENT)
    tokens["jwt-sub-number"] = issuer.token(now, {"typ": "JWT"}, sub=7)
    tokens["application-at-jwt-jti-missing"] = issuer.token(now, {"typ": "application/at+jwt"}, jti=ABSENT)
    tokens["typ-in-capitals-jti-missing"] = issuer.token(now, {"typ": "AT+JWT"}, jti=ABSENT)
    return tokens


def _other_kinds(issuer: Issuer, now: float) -> dict[str, str]:
    types = {
        "missing": ABSENT,
        "null": None,
        "empty": "",
        "list": ["at+jwt"],
        "number": 1,
        "id-token": "id_token",
        "logout": "logout+jwt",
        "security-event": "secevent+jwt",
        "dpop-proof": "dpop+jwt",
        "introspection": "token-introspection+jwt",
        "trailing-space": "at+jwt ",
        "trailing-nul": "at+jwt\0",
        "other-prefix": "text/at+jwt",
        "parameter": "at+jwt; charset=utf-8",
    }
    tokens = {f"typ-{name}": issuer.token(now, {"typ": typ}) for name, typ in types.items()}
    logout: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
    signs: dict[str, dict[str, Any]] = {
        "id-token-nonce": {"nonce": "n-0S6"},
        "id-token-at-hash": {"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"},
        "id-token-c-hash": {"c_hash": "77QmUPtjPfzWtF2AnpK9RQ"},
        "id-token-null-nonce": {"nonce": None},
        "logout-token": {"events": logout},
        "dpop-proof-claims": {"htm": "GET", "htu": "https://analytics.example"},
        "request-object": {"response_type": "code"},
        "token-use-id": {"token_use": "id"},
        "refresh-token": {"typ": "Refresh"},
        "token-type-list": {"token_type": ["access"]},
    }
    tokens |= {name: issuer.token(now, {"typ": "JWT"}, **claims) for name, claims in signs.items()}
    return tokens | {f"at-jwt-{name}": issuer.token(now, **signs[name]) for name in ("id-token-nonce", "logout-token")}


def _bound_tokens(issuer: Issuer, now: float) -> dict[str, str]:
    values: dict[str, Any] = {
        "jkt": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
        "x5t": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"},
        "empty": {},
        "null": None,
        "string": "jkt",
    }
    tokens = {f"cnf-{name}": issuer.token(now, cnf=cnf) for name, cnf in values.items()}
    return tokens | {"jwt-cnf-jkt": issuer.token(now, {"typ": "JWT"}, cnf=values["jkt"])}


def _repeated_members(issuer: Issuer, now: float) -> dict[str, str]:
    header, payload = to_json(issuer.header()), to_json(issuer.claims(now))
    tenant = f',"{issuer.tenant_claim}":"org-2"}}'.encode()
    escaped = f',"\\u{ord(issuer.tenant_claim[0]):04x}{issuer.tenant_claim[1:]}":"org-2"}}'.encode()
    payloads = {
        "tenant-twice": payload[:-1] + tenant,
        "tenant-twice-escaped": payload[:-1] + escaped,
        "same-tenant-twice": payload[:-1] + f',"{issuer.tenant_claim}":"{issuer.tenant}"}}'.encode(),
        "exp-twice": payload[:-1] + f',"exp":{int(now) + 700}}}'.encode(),
        "scope-twice": payload[:-1] + b',"scope":"admin"}',
        "nested-twice": payload[:-1] + b',"act":{"sub":"a","sub":"b"}}',
        "nested-in-list-twice": payload[:-1] + b',"acts":[{"sub":"a","sub":"b"}]}',
    }
    tokens = {name: issuer.compact(header, data) for name, data in payloads.items()}
    for name, member in {"kid": b'"kid":"next"', "alg": b'"alg":"none"', "typ": b'"typ":"JWT"'}.items():
        tokens[f"header-{name}-twice"] = issuer.compact(header[:-1] + b"," + member + b"}", payload)
    return tokens


def _tenants(issuer: Issuer, now: float) -> dict[str, str]:
    values: dict[str, Any] = {
        "missing": ABSENT,
        "null": None,
        "empty": "",
        "blank": "  ",
        "list": [issuer.tenant],
        "number": 1,
        "true": True,
        "object": {"id": issuer.tenant},
        "300-characters": "o" * 300,
        "129-characters": "o" * 129,
        "sql": "' OR 1=1 --",
        "percent": "%",
        "star": "*",
        "nul": f"{issuer.tenant}\0",
        "newline": f"{issuer.tenant}\n",
        "leading-space": f" {issuer.tenant}",
        "exposition": 'org"} 1\nagentidp_tenant_tokens_issued_total{tenant_id="org-2',
        "lone-surrogate": f"{issuer.tenant}\ud800",
        "other-digits": "org-\u0661",
        "overflow-tenant": "_other",
        "traversal": "../org-2",
        "two": f"{issuer.tenant},org-2",
    }
    claims: dict[str, dict[str, Any]] = {name: {issuer.tenant_claim: value} for name, value in values.items()}
    claims["in-other-claims"] = {issuer.tenant_claim: ABSENT, "org_id": issuer.tenant, "tid": issuer.tenant}
    return {f"tenant-{name}": issuer.token(now, **changes) for name, changes in claims.items()}


def _scopes(issuer: Issuer, now: float) -> dict[str, str]:
    values = {
        "missing": ABSENT,
        "null": None,
        "empty": "",
        "other": "openid profile",
        "longer": f"{issuer.scope}er",
        "prefix": issuer.scope[:-1],
        "capitals": issuer.scope.upper(),
        "list": [issuer.scope],
        "object": {issuer.scope: True},
        "comma": f"openid,{issuer.scope}",
        "tab": f"openid\t{issuer.scope}",
        "newline": f"{issuer.scope}\n",
        "star": "*",
    }
    tokens = {f"scope-{name}": issuer.token(now, scope=scope) for name, scope in values.items()}
    return tokens | {"scope-in-scp": issuer.token(now, scope=ABSENT, scp=[issuer.scope])}


class JwksServer:
    """A key-set endpoint on 127.0.0.1 that a test can hold, break and count.

    `hits` counts requests to the key set, `elsewhere_hits` those to any other path. `respond` makes the answer.
    """

    def __init__(self, document: object) -> None:
        self.hits = 0
        self.elsewhere_hits = 0
        self.open = asyncio.Event()
        self.open.set()
        self._arrivals = asyncio.Semaphore(0)
        self.respond: Callable[[], web.StreamResponse]
        self.publish(document)

    def publish(self, document: object) -> None:
        self.respond = lambda: web.json_response(document)

    async def arrival(self) -> None:
        """Waits for one request more than before."""
        await self._arrivals.acquire()

    async def __aenter__(self) -> JwksServer:
        app = web.Application()
        app.router.add_get("/jwks", self._answer)
        app.router.add_route("*", "/{path:.*}", self._answer_elsewhere)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.origin = f"http://{host}:{port}"
        self.url = f"{self.origin}/jwks"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open.set()
        await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.StreamResponse:
        self.hits += 1
        self._arrivals.release()
        await self.open.wait()
        return self.respond()

    async def _answer_elsewhere(self, _: web.Request) -> web.StreamResponse:
        self.elsewhere_hits += 1
        return self.respond()
