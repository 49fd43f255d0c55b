"""The exporter asked by anybody about anything: an answer, never a fault of ours, and nothing hostile in it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from maintlock import cli, config, paths, pending, process, sidecar
from maintlock.redact import printable
from maintlock.times import rfc3339
from maintlock_exporter.application import Application, hosts_of
from maintlock_exporter.scene import Scene
from maintlock_exporter.server import Server
from maintlock_exporter.view import Watcher

LEASE = "heavy-maintenance"
PATHS = ["/", "/metrics", "/api/v1/status", "/-/healthy", "/-/ready"]
EXPECTED = {"200", "400", "404", "405", "421", "503"}
LATIN = st.text(st.characters(max_codepoint=255), max_size=20)  # what a server makes of any bytes
HOSTS = st.sampled_from(
    ["127.0.0.1", "localhost:9817", "[::1]:1", "LOCALHOST", "evil.example", "[", "]:", ":", "[::1]x", ""]
)
HOSTILE = st.text(max_size=15).map(lambda text: f"<hostile>&{text}\"'\x1b[31m\u202e{{{{7*7}}}}</hostile>\n")


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """Give what is watched: a state directory with something in it."""
    directory = tmp_path_factory.mktemp("watched")
    directory.chmod(0o700)
    settings_file = directory / "maintlock.toml"
    settings_file.write_text("[tasks.kbSync]\n[tasks.backup]\n")
    found = Watcher(Scene(directory=str(directory), config=config.load(str(settings_file)), started_at=time.time()))
    yield found
    found.keeper.close()


def asked(app: Application, **environ: str) -> tuple[str, dict[str, str], bytes]:
    """Ask the application once, as wsgiref does."""
    begun: list[Any] = []
    request = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
        **environ,
    }  # fmt: skip
    body = b"".join(app(request, lambda *told: begun.extend(told)))  # type: ignore[arg-type]  # what it needs of WSGI's
    return begun[0][:3], dict(begun[1]), body


def application(watcher: Watcher) -> Application:
    """Return an application of its own."""
    return Application(watcher, hosts_of("127.0.0.1", []))


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {"PATH_INFO": st.sampled_from(PATHS) | LATIN, "HTTP_HOST": HOSTS | LATIN},
        optional={
            "REQUEST_METHOD": st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "get", "BREW"]) | LATIN,
            "QUERY_STRING": st.sampled_from(
                ["name[]=maintlock_up", "name[]=", "name[]=%00", "&=&", "name%5B%5D=x&name[]=y"]
            )
            | LATIN,
            "HTTP_ACCEPT": st.sampled_from(
                [
                    "application/openmetrics-text",
                    "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
                    "*/*",
                    ",;=",
                    ";q=",
                ]
            )
            | LATIN,
            "HTTP_ACCEPT_ENCODING": st.sampled_from(["gzip", "gzip;q=x", ",", "br"]) | LATIN,
            "SERVER_PROTOCOL": st.sampled_from(["HTTP/1.0", "HTTP/0.9", "X"]),
        },
    )
)
def test_any_request_is_answered(watcher: Watcher, request: dict[str, str]) -> None:
    """Whatever path, host, method, query and headers say, the answer is one of those that there are."""
    status, headers, body = asked(application(watcher), **request)
    assert status in EXPECTED, (status, body)
    assert b"Traceback" not in body
    assert not [value for value in headers.values() if "\n" in value or "\r" in value]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.fixture(scope="module")
def port(watcher: Watcher) -> Iterator[int]:
    """Give the port of a server in this process."""
    server = Server(("127.0.0.1", 0), application(watcher))
    server.daemon_threads, server.block_on_close = False, True  # no thread of it outlives the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


class _Warnings(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's message."""
        self.told.append(record.getMessage())


@pytest.fixture(scope="module")
def warnings() -> Iterator[list[str]]:
    """Give what is logged as a warning or worse."""
    handler = _Warnings()
    logging.getLogger().addHandler(handler)
    yield handler.told
    logging.getLogger().removeHandler(handler)


WIRE = st.binary(max_size=60) | st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"GET ",
        b"\r\n",
        b"HEAD /metrics HTTP/1.0\r\n",
        b"Host: [\r\n",
        b"%zz",
        b"\0",
        b":",
        b"GET /metrics?name[]=%ff HTTP/1.1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b" HTTP/9.9\r\n",
    ]
)


@settings(max_examples=60)
@given(st.lists(WIRE, min_size=1, max_size=5))
def test_any_bytes_on_the_wire_are_borne(port: int, warnings: list[str], parts: list[bytes]) -> None:
    """Whatever bytes a client sends, it is told what is wrong with them or nothing, and the next one is served."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        answer = b""
        with contextlib.suppress(OSError):
            client.sendall(b"".join(parts) + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            while chunk := client.recv(65536):
                answer += chunk
    assert not answer or answer.startswith(b"HTTP/1."), answer[:80]
    assert answer[9:12] not in {b"500", b"501", b"502"} or b"Unsupported method" in answer, answer[:200]
    assert b"Traceback" not in answer
    assert not warnings
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 200")


@contextlib.contextmanager
def held_by(directory: Path, fields: dict[str, Any]) -> Iterator[None]:
    """Hold the lease with this process, under a sidecar of any content."""
    identity = process.read_identity(os.getpid())
    assert identity is not None
    record = {
        "lease": LEASE, "lease_id": "ab" * 16, "fence": 1, "task": "kbSync", "owner": "x", "source": "cli", "reason": "x",
        "mode": "supervised", "pid": identity.pid, "pid_started_at": rfc3339(time.time()),
        "pid_start_ticks": identity.start_ticks, "boot_id": identity.boot_id, "pid_namespace": identity.pid_namespace,
        "session_id": os.getsid(0), "hostname": "x", "uid": os.geteuid(), "job_pid": None, "job_started_at": None,
        "command": [], "cwd": "/", "acquired_at": rfc3339(time.time()), "waited_seconds": 0.0, "ttl_seconds": 1.0, **fields,
    }  # fmt: skip
    places = paths.Places(directory=str(directory), lease=LEASE)
    fd = os.open(places.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sidecar.write(places.sidecar, record)
        yield
    finally:
        os.close(fd)
        sidecar.remove(places.sidecar)


def printed(directory: Path, *command: str) -> str:
    """Return what a command prints for people."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*command, "--state-dir", str(directory), "--config", "none"]) == 0
    return out.getvalue()


@settings(max_examples=25)
@given(
    fields=st.fixed_dictionaries(
        {
            **dict.fromkeys(("owner", "reason", "hostname", "cwd", "source", "mode"), HOSTILE),
            "command": st.lists(HOSTILE, max_size=3),
            "acquired_at": HOSTILE | st.just(rfc3339(0.0)),
            "job_started_at": HOSTILE | st.none(),
        }
    ),
    told=st.fixed_dictionaries(
        dict.fromkeys(("task", "reason", "source", "blocked_by", "parent_task", "reason_code", "detail"), HOSTILE)
    ),
    kind=st.sampled_from(["acquired", "deferred", "nested_started", "collision", "stop_requested"]),
)
def test_hostile_words_are_shown_as_words(
    watcher: Watcher, fields: dict[str, Any], told: dict[str, Any], kind: str
) -> None:
    """Whatever stands in sidecar and events, page and metrics show it as text or not at all, and terminals are not steered."""
    directory = Path(watcher.scene.directory)
    event = {
        "id": os.urandom(8).hex(),
        "event": kind,
        "at": rfc3339(time.time()),
        "lease": LEASE,
        "lease_id": "x",
        **told,
    }
    pending.append(str(directory), [event])
    # The others take long to look at, and have no part in this.
    seen = mock.patch.object(process, "read_pids", return_value=[os.getpid()])
    try:
        with seen, held_by(directory, fields):
            app = application(watcher)
            status, _, page = asked(app)
            assert status == "200"
            text = page.decode()
            assert "<hostile>" not in text and "\x1b" not in text and "\u202e" not in text
            status, _, metrics = asked(app, PATH_INFO="/metrics")
            assert status == "200"
            found = [sample for family in text_string_to_metric_families(metrics.decode()) for sample in family.samples]
            assert not [sample for sample in found if "<hostile>" in "".join(sample.labels.values())]
            assert {sample.value for sample in found if sample.name == "maintlock_up"} == {1.0}
            status, _, body = asked(app, PATH_INFO="/api/v1/status")
            assert status == "200" and json.loads(body)["state"] == "held"
            for shown in (printed(directory, "status"), printed(directory, "history")):
                assert all(printable(line, 10**6) == line for line in shown.split("\n"))
    finally:
        (directory / pending.PENDING).unlink(missing_ok=True)
