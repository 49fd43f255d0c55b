"""A real Chromium without a window, steered through its debugging pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
).split()
# Chromium reads its orders from descriptor 3 and answers on 4.
EXEC = "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 10); os.dup2(b, 11); os.dup2(10, 3); os.dup2(11, 4); os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """One page in one browser; `events` is what the page has told of itself since it was opened."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers = orders, answers
        self._seen = b""
        self._calls = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        self._target: str | None = None
        self.turn_to_new_page()

    def turn_to_new_page(self) -> None:
        """Forget the page with what it has told and how it was shown, as a new browser would."""
        old, self._session = self._target, None
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if old is not None:
            self.call("Target.closeTarget", targetId=old)
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.events.clear()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order, and return its result."""
        self._calls += 1
        order = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._calls:
                assert "error" not in message, f"{method}: {message['error']}"
                found: dict[str, Any] = message["result"]
                return found
            self.events.append(message)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._seen:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._answers, 1 << 20) if ready else b""
            assert chunk, "the browser says nothing more"
            self._seen += chunk
        text, _, self._seen = self._seen.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def open(self, url: str) -> str:
        """Open a page, and return what the browser calls it, when it is loaded."""
        self.events.clear()
        begun = self.call("Page.navigate", url=url)
        assert "errorText" not in begun, begun
        # Of the empty page before it the browser may tell only now.
        return self.until_loaded(lambda document: bool(document == begun["loaderId"]))

    def until_loaded(self, is_wanted: Callable[[str], bool]) -> str:
        """Return what the browser calls the first document that is wanted, when it is loaded."""
        while not (found := [document for document in self._loaded() if is_wanted(document)]):
            self.events.append(self._next())
        return found[0]

    def _loaded(self) -> list[str]:
        told = self.told("Page.lifecycleEvent")
        return [str(event["loaderId"]) for event in told if event["name"] == "load"]

    def told(self, method: str) -> list[dict[str, Any]]:
        """Return what the page has told of one kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def value(self, expression: str) -> Any:
        """Return the value of an expression inside the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def show_as(self, *, width: int = 1100, height: int = 800, scheme: str = "light", is_phone: bool = False) -> None:
        """Set the size of the window, and whether its user likes it light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Write a picture of what fits into the window."""
        picture = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browser(chromium: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end it."""
    orders, answers = os.pipe(), os.pipe()
    argv = [chromium, *OPTIONS, f"--user-data-dir={profile}"]
    popen = subprocess.Popen(
        [sys.executable, "-c", EXEC, str(orders[0]), str(answers[1]), *argv], pass_fds=(orders[0], answers[1]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(orders[0])
    os.close(answers[1])
    try:
        yield Browser(orders[1], answers[0])
    finally:
        os.close(orders[1])  # its end of the pipe gone, it leaves with all its processes
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        os.close(answers[0])
