"""Every option of every command with values that cannot be meant: one line that names it, exit 2, nothing started."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from agentidp_analytics import cli, exporter_client, investigation, service, store_commands
from agentidp_analytics.dev_keys import DevKey
from agentidp_analytics.options import EXISTING_FILE, Address, Duration, PerSecond

# The package has the function of the same name.
demo_module = importlib.import_module("agentidp_analytics.demo")

NUMBERS = ("", "-1", "1.5.0", "abc", "nan", "inf", "1e9", "0x10", "1_0", "+5", " 5", "５", "9" * 400)
HOSTILE: dict[str, tuple[str, ...]] = {
    "duration": (*NUMBERS, "-1s", "5 s", "5w", "9" * 30 + "d", "s", "1h30m"),
    "rate": (*NUMBERS, "0", "0.0", "99999999999"),
    "integer": ("", "0", "-1", "1.5", "abc", "nan", "1e3", "9" * 400),
    "address": (
        *("", "localhost", ":", ":3000", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1", "::1:3000", "[::1]"),
        *("http://127.0.0.1:3000", "127.0.0.1:http", "no-such-host.invalid:3000", "203.0.113.7:3000", "a" * 300 + ":1"),
    ),
    "choice": ("", "x", "JSON", "api,exporter"),
    "file": ("", "/no/such/file", "/", "/proc/self/mem/x"),
    "date": ("", "x", "2026-02-30", "2026-1-1T00:00:00", "26-01-01"),
    "--dsn": (
        *("", "x", "data", "chdb:", "chdb://", "chdb://relative", "chdb:///proc/no/such", "file:///tmp/x"),
        *("postgres://h/d", "http://", "http://[", "clickhouse://h:99999/d", "https://h/d?secure=false"),
    ),
    "--issuer": ("",),
    "--audience": ("",),
    "--jwks-url": ("", "x", "http://idp.example/jwks", "https://", "https://u:p@idp.example/jwks", "https://h/j#f", "ftp://h/j"),
    "--jwt-algorithms": ("", "none", "HS256", "RS256,", "RS256,none", "rs256", ","),
    "--tenant-claim": ("",),
    "--token-types": ("", ",", "at+jwt,"),
    "--required-scope": ("", "a b", 'a"b', "ä"),
    "--url": ("", "x", "ftp://h", "http://", "http://h/path", "https://h?x=1", "http://h:99999", "http://h:abc",
              "http://[::1", "http://a..b", "http://a b", "http://u:p@h", "http://h#f"),
    "--tenant": ("", "a b", "_other", "x" * 129, "ä", "a\n"),
    "--web-user": ("", "a:b", "a\n", "a\x1bb"),
    "--cluster": ("x",),  # of an embedded store
}  # fmt: skip
# What each command needs to be complete; the hostile value takes the place of the one given here.
NEEDED: dict[str, dict[str, str]] = {
    "serve": {"--issuer": "https://i", "--audience": "a", "--jwks-url": "http://127.0.0.1:1/jwks"},
    "ingest": {},
    "erase": {"--tenant": "org-a"},
    "failover": {"--shard": "1", "--to": "h", "--cluster": "main"},
    "investigate": {"--tenant": "org-a", "--agent": "a"},
    "token": {"--tenant": "org-a"},
}


def kind_of(parameter: click.Option) -> str | None:
    """Which of the hostile values it gets; None for switches, and for names that may be anything."""
    name = parameter.opts[0]
    if name in HOSTILE:
        return name
    if isinstance(parameter.type, Duration):
        return "duration"
    if isinstance(parameter.type, PerSecond):
        return "rate"
    if isinstance(parameter.type, Address):
        return "address"
    if isinstance(parameter.type, click.IntRange):
        return "integer"
    if isinstance(parameter.type, click.Choice):
        return "choice"
    if isinstance(parameter.type, click.DateTime):
        return "date"
    if parameter.type is EXISTING_FILE:
        return "file"
    return None


def cases() -> Iterator[Any]:
    for name, command in cli.cli.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag and kind_of(parameter):
                yield pytest.param(name, parameter, id=f"{name}{parameter.opts[0]}")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    DevKey.generate().save(path)
    return path


@pytest.fixture(autouse=True)
def an_empty_directory_to_work_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that gets as far as a store is one that was not refused."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the call was not refused")

    for module in (store_commands, investigation, service, demo_module):
        monkeypatch.setattr(module, "open_store", opened)
    for question in ("alerts", "agent_detail"):
        monkeypatch.setattr(exporter_client.ExporterClient, question, opened)
    for function in ("migrate_store", "failover_store"):
        monkeypatch.setattr(store_commands, function, opened)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert ended.value.code == 2, captured.err
    assert len([line for line in lines if line.startswith("agentidp-analytics: ")]) == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(Path.cwd().iterdir()) in ([], [Path.cwd() / "events"]), "something was left behind"
    return lines[-1]


def arguments_for(command: str, option: str, value: str) -> list[str]:
    needed = {name: given for name, given in NEEDED.get(command, {}).items() if name != option}
    arguments = [command, *(word for pair in needed.items() for word in pair)]
    if command in ("serve", "demo"):
        for name in {"--listen", "--metrics-listen"} - {option}:
            arguments += [name, "127.0.0.1:0"]
    if command == "ingest":
        Path("events").touch()
        arguments.append("events")
        if option == "--url":
            arguments += ["--token-file", "events"]
    if option == "--web-user":
        Path("events").write_text("password")
        arguments += ["--password-file", "events"]
    return [*arguments, *([f"{option}={value}"] if value is not None else [])]


@pytest.mark.parametrize(("command", "parameter"), list(cases()))
def test_a_value_that_cannot_be_meant_is_one_line(
    command: str,
    parameter: click.Option,
    key: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = parameter.opts[0]
    if option not in ("--dsn", "--cluster"):  # what is wrong with these, the store says
        request.getfixturevalue("nothing_opens")
    if command == "token" and option != "--key":
        monkeypatch.setenv("AGENTIDP_ANALYTICS_KEY", str(key))
    for value in HOSTILE[kind_of(parameter) or ""]:
        line = refused(capsys, arguments_for(command, option, value))
        assert option in line or (option == "--url" and "--token-file" in line), (value, line)
        if value and parameter.envvar and "\n" not in value:
            monkeypatch.setenv(str(parameter.envvar), value)
            refused(capsys, [word for word in arguments_for(command, option, "") if word != f"{option}="])
            monkeypatch.delenv(str(parameter.envvar))


def test_every_option_with_a_value_is_tried_or_may_be_anything() -> None:
    free = {
        (name, parameter.opts[0])
        for name, command in cli.cli.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.is_flag and kind_of(parameter) is None
    }
    assert free == {("erase", "--agent"), ("investigate", "--agent"), ("ingest", "--rejects"), ("failover", "--to")}


SERVE = ["serve", "--issuer", "https://i", "--audience", "a", "--jwks-url", "http://127.0.0.1:1/jwks"]


def test_an_address_in_use_is_found_before_a_store_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments in (SERVE, ["demo"]):
            for option in ("--listen", "--metrics-listen"):
                other = "--listen" if option == "--metrics-listen" else "--metrics-listen"
                line = refused(capsys, [*arguments, option, address, other, "127.0.0.1:0"])
                assert f"{option} {address}" in line
                assert "in use" in line
        free = taken.getsockname()[1]
    line = refused(capsys, [*SERVE, "--listen", f"127.0.0.1:{free}", "--metrics-listen", f"127.0.0.1:{free}"])
    assert "--metrics-listen" in line


@pytest.mark.parametrize(
    "arguments",
    [
        [*SERVE, "--no-issuer-check"],
        [*SERVE, "--only", "api"],
        [*SERVE, "--jwks-url", "https://b/jwks", "--jwks-url", "https://c/jwks"],
        [*SERVE, "--tls-cert", "/etc/hostname"],
        [*SERVE, "--ca-file", "/etc/hostname"],
        ["serve"],
        ["serve", "--issuer", "https://i"],
        ["ingest"],
        ["ingest", "/no/such/file"],
        ["ingest", "/etc/hostname", "--token-file", "/etc/hostname"],
        ["ingest", "/etc/hostname", "--url", "http://127.0.0.1:1"],
        ["erase"],
        ["erase", "--tenant", "org-a", "--agent", ""],
        ["alerts", "--web-user", "ops"],
        ["alerts", "--password-file", "/etc/hostname"],
        ["alerts", "--web-user", "ops", "--password-file", "/dev/null"],
        ["alerts", "--ca-file", "/etc/hostname"],
        ["alerts", "--dsn", "chdb:///tmp/x", "--web-user", "ops"],
        ["alerts", "--dsn", "chdb:///tmp/x", "--ca-file", "/etc/hostname"],
        ["investigate"],
        ["investigate", "--tenant", "org-a"],
        ["investigate", "--agent", "a"],
        *(["investigate", "--tenant", "org-a", "--agent", agent] for agent in ("", "x" * 257, "a\nb", "\udcff")),
        ["token", "--tenant", "org-a", "--key", "/etc/hostname"],
        ["no-such-command"],
        ["serve", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_settings_that_contradict_or_miss_each_other_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "serve":
        arguments = [*arguments, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    refused(capsys, arguments)
