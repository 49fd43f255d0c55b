"""What somebody who waits is told: for whom, since when, and how long that task usually takes."""

from __future__ import annotations

from maintlock.times import duration_text, epoch_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maintlock.holder import Blocker
    from maintlock.paths import Places


class Waitline:
    """The words of one request's wait."""

    def __init__(self, places: Places, task: str) -> None:
        self.places = places
        self.task = task
        self._usual: dict[str | None, str] = {}

    def sentence(self, blocker: Blocker) -> str:
        """Return what is told once, at the start."""
        return f"{self.task} waits for the {self.places.lease} lease: {blocker.sentence}"

    def forms(self, blocker: Blocker, now: float) -> list[str]:
        """Return what is kept up to date on a terminal, in full first and then ever more shortly."""
        usual = self._usual_text(blocker)
        since = epoch_seconds(blocker.fields["acquired_at"]) if blocker.fields is not None else None
        found = [self.sentence(blocker) + usual]
        if since is None or blocker.survivors:
            return [*found, f"{self.task} waits: {blocker.sentence}{usual}"]
        short = f"held by {blocker.task} for {duration_text(now - since)}{usual}"
        return [*found, f"{self.task} waits for the {self.places.lease} lease: {short}", f"{self.task} waits: {short}"]

    def _usual_text(self, blocker: Blocker) -> str:
        task = blocker.task
        if task is None:
            return ""
        if task not in self._usual:
            self._usual[task] = _read_usual(self.places, task)
        return self._usual[task]


def _read_usual(places: Places, task: str) -> str:
    from maintlock import history  # not before somebody sits and watches

    try:
        seconds = history.typical_seconds(places.directory, places.lease, task)
    except Exception:  # noqa: BLE001  this line is a courtesy: whatever is wrong with the ledger, the wait goes on
        return ""
    return "" if seconds is None else f", usually takes {duration_text(seconds)}"
