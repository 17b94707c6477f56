"""`python -m tests.support.bridge --path DIR --listen 127.0.0.1:PORT`: serves the store in DIR until told to stop.

User and password come from BRIDGE_USER (`default`) and BRIDGE_PASSWORD (required). When it is ready, one JSON line
with the port goes to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from aiohttp import web

from tests.support.bridge.engine import Engine
from tests.support.bridge.replica import Replica
from tests.support.bridge.server import MAX_URI_BYTES, Server


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.bridge")
    parser.add_argument("--path", type=Path, required=True, help="directory of the store; made when missing")
    parser.add_argument("--listen", default="127.0.0.1:0", help="address and port; port 0 picks a free one")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="stop when standard input ends, so that no parent is outlived"
    )
    parser.add_argument("--replica", help="JSON: the shard's `shared` directory, this one's `name`, the `cluster`")
    arguments = parser.parse_args()
    if "BRIDGE_PASSWORD" not in os.environ:
        parser.error("BRIDGE_PASSWORD is not set")
    arguments.path.mkdir(parents=True, exist_ok=True)
    alone = Engine(arguments.path)
    engine: Engine | Replica = alone
    if arguments.replica:
        of = json.loads(arguments.replica)
        engine = Replica(alone, Path(of["shared"]), of["name"], [tuple(row) for row in of["cluster"]])
    asyncio.run(_serve(engine, arguments.listen, watch_stdin=arguments.until_stdin_closes))
    engine.close()


async def _serve(engine: Engine | Replica, listen: str, *, watch_stdin: bool) -> None:
    server = Server(engine, os.environ.get("BRIDGE_USER", "default"), os.environ["BRIDGE_PASSWORD"])
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        auto_decompress=False,  # an insert may be several frames in a row
        max_line_size=MAX_URI_BYTES,
        max_field_size=MAX_URI_BYTES,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    host, _, port = listen.rpartition(":")
    site = web.TCPSite(runner, host, int(port))
    await site.start()
    print(json.dumps({"ready": True, "port": runner.addresses[0][1], "pid": os.getpid()}), flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if watch_stdin:
        loop.add_reader(0, lambda: None if os.read(0, 4096) else stop.set())
    await stop.wait()
    await runner.cleanup()
    server.close()


main()
