"""The sockets: a thread for each connection, and none of them can make the others wait.

A connection that we wait for, because it has not sent its request or does not take our answer, has ten seconds in all; when
there are too many connections the one that was waited for the longest is closed.
"""

from __future__ import annotations

import logging
import resource
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.client import LineTooLong
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from io import BufferedIOBase
    from types import TracebackType
    from typing import BinaryIO

    from maintlock_exporter.application import Application

MAX_CONNECTIONS = 512
WAIT_SECONDS = 10.0
LINGER_SECONDS = 1.0
MAX_LINGER_BYTES = 4 << 20
MAX_LINE_BYTES = 65536
MAX_HEAD_BYTES = 65536
log = logging.getLogger(__name__)


class Server(ThreadingMixIn, WSGIServer):
    """Serves an application; `wait_seconds` is how long we wait for a client in all."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], app: Application, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.wait_seconds = wait_seconds
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_connections = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)
        self._live: set[Any] = set()
        self._awaited_since: dict[Any, float] = {}  # the longest-awaited first
        self._changed = threading.Condition()
        super().__init__(cast("Any", address), Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind without looking our own name up, which can take half a minute on a laptop without a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    # Connections

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection; where there are too many, close another, or this one."""
        with self._changed:
            is_welcome = len(self._live) < self.max_connections or self._closed_longest_awaited()
            if is_welcome:
                self._live.add(request)
                self._awaited_since[request] = time.monotonic()
        if is_welcome:
            super().process_request(request, client_address)
        else:
            self.close_request(request)

    def wait_for(self, connection: Any) -> None:
        """Note that it is the client's turn."""
        with self._changed:
            self._awaited_since.pop(connection, None)
            self._awaited_since[connection] = time.monotonic()

    def work_for(self, connection: Any) -> None:
        """Note that it is our turn."""
        with self._changed:
            self._awaited_since.pop(connection, None)

    def service_actions(self) -> None:
        """Close what has been waited for too long, several times a second."""
        with self._changed:
            since = next(iter(self._awaited_since.values()), None)
            while since is not None and time.monotonic() - since > self.wait_seconds:
                self._closed_longest_awaited()
                since = next(iter(self._awaited_since.values()), None)

    def _closed_longest_awaited(self) -> bool:
        connection = next(iter(self._awaited_since), None)
        if connection is None:
            return False
        del self._awaited_since[connection]
        try:
            connection.shutdown(socket.SHUT_RDWR)  # its thread wakes up, and closes it
        except OSError:
            pass
        return True

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changed:
            self._live.discard(request)
            self._awaited_since.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def finish(self, seconds: float) -> None:
        """Let the answers that are being made come to their end, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._live) == len(self._awaited_since), seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  as in socketserver
        """Leave clients that went away out of the log."""
        log.debug("connection failed", exc_info=sys.exc_info(), extra={"event": "connection_failed"})


class Handler(WSGIRequestHandler):
    """One connection, which is one request."""

    server: Server
    default_request_version = "HTTP/1.0"  # what cannot be understood is answered with a status line too

    def setup(self) -> None:
        """Bound what is read, and how long a read or a write may take."""
        self.request.settimeout(self.server.wait_seconds)
        super().setup()

    def handle(self) -> None:
        """Read a request, and answer it."""
        if not self._has_parsed():
            self._linger()
            return
        self.server.work_for(self.connection)
        environ = self.get_environ()
        answering = _Answering(cast("BinaryIO", self.rfile), cast("BinaryIO", self.wfile), self.get_stderr(), environ)
        answering.request_handler = self
        answering.run(cast("Application", self.server.get_app()))
        if environ.get("CONTENT_LENGTH") or environ.get("HTTP_TRANSFER_ENCODING"):
            self._linger()

    def _has_parsed(self) -> bool:
        self.raw_requestline = self.rfile.readline(MAX_LINE_BYTES + 1)
        if len(self.raw_requestline) > MAX_LINE_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return False
        self.rfile = cast("BufferedIOBase", _Head(self.rfile))
        return bool(self.raw_requestline) and self.parse_request()

    def _linger(self) -> None:
        """Take what the client still sends: closed upon that, it would lose our answer (RFC 9112, 9.6)."""
        self.server.wait_for(self.connection)
        deadline, left = time.monotonic() + LINGER_SECONDS, MAX_LINGER_BYTES
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (seconds := deadline - time.monotonic()) > 0:
                self.connection.settimeout(seconds)
                taken = len(self.connection.recv(65536))
                left -= taken or left
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
        """Leave requests out of the log: a scrape every few seconds would fill it."""
        log.debug(format, *args, extra={"event": "request"})


class _Head:
    """What a request begins with, of which no more is read than `MAX_HEAD_BYTES`."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._left = MAX_HEAD_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("header")
        return line

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


class _Answering(ServerHandler):
    """One answer."""

    request_handler: Handler

    def _write(self, data: bytes) -> None:
        self.request_handler.server.wait_for(self.request_handler.connection)
        super()._write(data)

    def log_exception(
        self, exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
    ) -> None:
        """Log what cannot be sent like everything else, and not as a traceback between the lines."""
        level = logging.DEBUG if isinstance(exc_info[1], OSError) else logging.ERROR
        log.log(level, "cannot send an answer", exc_info=exc_info, extra={"event": "send_failed"})
