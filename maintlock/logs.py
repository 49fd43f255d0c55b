"""Logs of the long-lived programs: one JSON object per line, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from maintlock.times import rfc3339


class _Json(JsonFormatter):
    """One JSON object per line, with our own kind of time."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802  as in logging
        """Return when it was logged."""
        return rfc3339(record.created)


def log_as_json() -> None:
    """Have everything that is logged from now on printed as JSON lines with `at level logger message` and the extra fields."""
    renamed: dict[str, Any] = {"asctime": "at", "levelname": "level", "name": "logger"}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json("{asctime}{levelname}{name}{message}", style="{", rename_fields=renamed))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def log_as_text() -> None:
    """Have everything that is logged from now on printed for people."""
    logging.basicConfig(level=logging.INFO, format="{asctime} {levelname} {message}", style="{", stream=sys.stderr)
