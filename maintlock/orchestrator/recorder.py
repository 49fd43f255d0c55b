"""Keeping our record up to date: an idle pass writes nothing, and changes only the file's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.orchestrator import record

if TYPE_CHECKING:
    from maintlock.orchestrator.record import Record


class Recorder:
    """The record's file, and what we have last written into it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._written: tuple[Record, tuple[int, ...]] | None = None

    def write(self, told: Record) -> bool:
        """Bring the record up to date; False if it cannot be written."""
        if self._written is not None:
            before, file = self._written
            if told == before and record.touch(self._directory, file):
                return True
        written = record.write(self._directory, told)
        self._written = (told, written) if written is not None else None
        if written is None:
            record.touch(self._directory, ())  # that works on a full disk, too
        return written is not None
