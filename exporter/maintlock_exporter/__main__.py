"""`maintlock-exporter`: the lease for Prometheus, and a status page for people."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest

import maintlock
from maintlock import config, paths, wholefile
from maintlock.command import Parser, read_config
from maintlock.errors import MaintlockError, UnavailableError, UsageError
from maintlock.logs import log_as_json
from maintlock.voice import Voice, print_text, report
from maintlock_exporter.application import Application, hosts_of, registry_for
from maintlock_exporter.collectors import Exporter
from maintlock_exporter.scene import Scene
from maintlock_exporter.server import Server
from maintlock_exporter.view import Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_LISTEN = "127.0.0.1:9817"
FINISH_SECONDS = 2.0
STOPPING = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger("maintlock_exporter")

EPILOG = """\
TERM ends it. HUP has the configuration read anew; an invalid one is reported, and the old one stays.

examples:
  maintlock-exporter
  maintlock-exporter --once | grep maintlock_lease_state
  maintlock-exporter --textfile /var/lib/prometheus/node-exporter/maintlock.prom
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    try:
        return _run(_parser().parse_args(argv))
    except Exception as error:  # noqa: BLE001  this is the edge
        return report(error, Voice("maintlock-exporter"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="maintlock-exporter",
        description="Serve Prometheus metrics and a status page: who has the lease, and what happened. It takes no lease.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS:PORT", default=DEFAULT_LISTEN, help=f"where to serve ({DEFAULT_LISTEN})"
    )
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="a further Host header to answer, repeatable"
    )
    parser.add_argument("--state-dir", metavar="DIR", help="where the lock lives")
    parser.add_argument("--config", metavar="FILE", help="maintlock.toml to use, or: none")
    parser.add_argument("--once", action="store_true", help="print the metrics and exit")
    parser.add_argument("--textfile", metavar="FILE", help="write the metrics to FILE and exit, for node_exporter")
    parser.add_argument("--version", action="version", version=f"maintlock-exporter {maintlock.__version__}")
    return parser


def _run(said: argparse.Namespace) -> int:
    settings = read_config(said)
    directory = paths.state_directory(said.state_dir, os.environ, settings.state_dir)
    scene = Scene(directory=directory, config=settings, started_at=time.time())
    watcher = Watcher(scene)
    if said.once or said.textfile:
        return _tell_once(watcher, said.textfile, is_shown=said.once)
    log_as_json()
    return _serve(watcher, *_address(said.listen), said.allow_host)


def _tell_once(watcher: Watcher, path: str | None, *, is_shown: bool) -> int:
    """Write the metrics to a file, whole, and to standard output."""
    logging.basicConfig(level=logging.WARNING, format="maintlock-exporter: %(message)s")
    metrics = generate_latest(registry_for(Exporter(watcher.look)))
    if path is not None:
        wholefile.write(path, metrics)
    if is_shown:
        print_text(metrics.decode())
    return 0


def _serve(watcher: Watcher, address: str, port: int, allowed: Sequence[str]) -> int:
    """Serve until TERM or INT."""
    awaited = {*STOPPING, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # for all threads: the main one asks for them below
    try:
        server = Server((address, port), Application(watcher, hosts_of(address, allowed)))
    except (OSError, UnicodeError, TypeError) as error:  # of a host's name that none can have
        reason = getattr(error, "strerror", None) or str(error)
        raise UnavailableError(
            f"cannot listen on {address} port {port}: {reason}; choose another with --listen"
        ) from error
    if not _is_loopback(address):
        log.warning(
            "listening beyond this machine: anyone who can reach it can read it;"
            " allow the names and addresses that it is asked by with --allow-host",
            extra={"event": "exposed", "address": address},
        )
    where = {"address": address, "port": server.server_port, "path": watcher.scene.directory}
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    log.info("listening", extra={"event": "listening", **where})
    while signal.sigwait(awaited) == signal.SIGHUP:
        _reload(watcher)
    server.shutdown()
    server.server_close()
    server.finish(FINISH_SECONDS)
    watcher.keeper.close()
    log.info("stopped", extra={"event": "stopped"})
    return 0


def _reload(watcher: Watcher) -> None:
    """Read the configuration anew; one that is invalid is reported, and the old one stays, and so does the state directory."""
    path = watcher.scene.config.path
    try:
        settings = config.load(path)
    except MaintlockError as error:
        log.error("%s; the old configuration stays", error, extra={"event": "config_invalid"})  # noqa: TRY400  no trace
        return
    watcher.watch(replace(watcher.scene, config=settings, started_at=time.time()))
    log.info("configuration read anew", extra={"event": "reloaded", "config": path})


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _address(text: str) -> tuple[str, int]:
    """Return address and port of `ADDRESS:PORT`, `[V6]:PORT` or `:PORT`.

    Raises:
        UsageError: It is none.
    """
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise UsageError(f"--listen {text!r}: expected ADDRESS:PORT, such as {DEFAULT_LISTEN}")
    return address.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  what an empty address means everywhere


if __name__ == "__main__":
    sys.exit(main())
