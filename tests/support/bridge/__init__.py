"""ClickHouse's HTTP interface in front of the embedded engine: the server path under test where no server can be had.

`python -m tests.support.bridge --path DIR --listen 127.0.0.1:0` is a process, so that several services can share
one store and a test can kill it. `process.Bridge` starts, kills and restarts it.
"""
