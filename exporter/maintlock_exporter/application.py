"""What is answered: a small WSGI dispatcher over that of prometheus_client.

Only names that are ours are answered: a page of somebody else's, open in a browser on this machine, must not read the
status through a name of its own that leads here (DNS rebinding).
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from maintlock import observe
from maintlock.errors import MaintlockError
from maintlock.names import DEFAULT_LEASE
from maintlock_exporter import page
from maintlock_exporter.collectors import Exporter
from maintlock_exporter.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any
    from wsgiref.types import StartResponse, WSGIEnvironment

    from maintlock_exporter.view import Watcher

    Headers = list[tuple[str, str]]
    Answer = tuple[str, Headers, bytes]

TEXT = ("Content-Type", "text/plain; charset=utf-8")
JSON = ("Content-Type", "application/json")
ALWAYS = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]
NOT_FOUND = b"not found; there are / /metrics /api/v1/status /-/healthy /-/ready\n"
NOT_OURS = b"this host name is not ours; allow it with --allow-host\n"
log = logging.getLogger(__name__)


def registry_for(exporter: Exporter) -> CollectorRegistry:
    """Return a registry of its own; `name[]` needs to look into collectors that do not say their names beforehand."""
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(exporter)
    return registry


def hosts_of(address: str, allowed: Iterable[str]) -> frozenset[str]:
    """Return the names that a `Host` header may bear; those allowed may be written as in one, with port and brackets."""
    return frozenset({"localhost", "127.0.0.1", "::1", *map(_name, (address, *allowed))}) - {""}


def _name(text: str) -> str:
    """Return the name in an option; unlike in a header, an IPv6 address needs no brackets there."""
    return text.lower() if text.count(":") > 1 and text[0] != "[" else host_in(text)


def host_in(header: str) -> str:
    """Return the name in a `Host` header, without port and brackets."""
    if header.startswith("["):
        name, _, port = header[1:].partition("]")
        return name.lower() if not port or port[0] == ":" else ""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


def answer(status: HTTPStatus, body: bytes, *headers: tuple[str, str]) -> Answer:
    """Return an answer, plain text unless the headers say otherwise."""
    return f"{status.value} {status.phrase}", list(headers or (TEXT,)), body


class Application:
    """The WSGI application."""

    def __init__(self, watcher: Watcher, hosts: frozenset[str]) -> None:
        self._watcher = watcher
        self._hosts = hosts
        self._metrics_app = make_wsgi_app(registry_for(Exporter(watcher.look)))
        self._shared: Shared[Answer] = Shared()
        self._answers: dict[str, Callable[[WSGIEnvironment], Answer]] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/api/v1/status": self._status,
            "/-/healthy": lambda _: answer(HTTPStatus.OK, b"healthy\n"),
            "/-/ready": self._ready,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        status, headers, body = self._refusal(environ) or self._answered(environ)
        start_response(status, [*headers, *ALWAYS, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _refusal(self, environ: WSGIEnvironment) -> Answer | None:
        host = environ.get("HTTP_HOST")
        if host is None and environ.get("SERVER_PROTOCOL") != "HTTP/1.0":
            return answer(HTTPStatus.BAD_REQUEST, b"the Host header is missing\n")
        if host is not None and host_in(host) not in self._hosts:
            return answer(HTTPStatus.MISDIRECTED_REQUEST, NOT_OURS)
        if environ["PATH_INFO"] not in self._answers:
            return answer(HTTPStatus.NOT_FOUND, NOT_FOUND)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", TEXT, ("Allow", "GET, HEAD"))
        return None

    def _answered(self, environ: WSGIEnvironment) -> Answer:
        path = environ["PATH_INFO"]
        headers = [TEXT, ("Refresh", str(page.REFRESH_SECONDS))] if path == "/" else [TEXT]
        try:
            return self._answers[path](environ)
        except MaintlockError as error:
            text = f"{error}\n".encode("utf-8", "backslashreplace")
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, text, *headers)
        except Exception:
            log.exception("cannot answer", extra={"event": "answer_failed", "path": path})
            return answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error, see the log\n", *headers)

    def _metrics(self, environ: WSGIEnvironment) -> Answer:
        """Return what prometheus_client makes of the request: text or OpenMetrics, gzip, `name[]`."""
        asked = {name: environ.get(name, "") for name in ("QUERY_STRING", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")}
        asked |= {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}

        def scrape() -> Answer:
            begun: list[Any] = []
            body = b"".join(self._metrics_app(asked, lambda *told: begun.extend(told)))
            status, headers = begun[:2]
            return status, headers, body

        return self._shared.get(tuple(asked.values()), scrape)

    def _page(self, _environ: WSGIEnvironment) -> Answer:
        def rendered() -> Answer:
            body, policy = page.rendered(self._watcher.look())
            return answer(
                HTTPStatus.OK,
                body,
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Security-Policy", policy),
                ("Referrer-Policy", "no-referrer"),
                ("X-Frame-Options", "DENY"),
            )

        return self._shared.get("/", rendered)

    def _status(self, _environ: WSGIEnvironment) -> Answer:
        def told() -> Answer:
            status = observe.read_status(self._watcher.scene.places(DEFAULT_LEASE), self._watcher.clock())
            return answer(HTTPStatus.OK, json.dumps(status).encode() + b"\n", JSON)

        return self._shared.get("/api/v1/status", told)

    def _ready(self, _environ: WSGIEnvironment) -> Answer:
        trouble = self._watcher.look().trouble
        if trouble is None:
            return answer(HTTPStatus.OK, b"ready\n")
        text = f"not ready: {trouble}; see: maintlock doctor\n"
        return answer(HTTPStatus.SERVICE_UNAVAILABLE, text.encode("utf-8", "backslashreplace"))
