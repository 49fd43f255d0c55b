"""`python -m tests.peers`: attack maintlock and its peers, and print a table as Markdown."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.peers.lockers import LOCKERS, Locker
from tests.peers.rows import ATTACKS, Attack
from tests.peers.scene import scene_in


def main() -> int:
    """Print one row for each attack, with one column for each peer."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: told to end"))  # nothing that we started outlives us
    lockers = [locker for locker in LOCKERS if not asked.peer or locker.name in asked.peer]
    attacks = [attack for attack in ATTACKS if not asked.only or any(text in attack.title for text in asked.only)]
    began = time.monotonic()
    _print_row(["attack", "n", *(locker.name for locker in lockers)])
    _print_row(["---"] * (len(lockers) + 2))
    with tempfile.TemporaryDirectory(prefix="maintlock-peers-") as name:
        for number, attack in enumerate(attacks):
            rounds = asked.rounds or attack.rounds
            cells = [
                told(attack, locker, Path(name) / f"{number}-{column}", rounds) for column, locker in enumerate(lockers)
            ]
            _print_row([attack.title, str(rounds), *cells])
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


def told(attack: Attack, locker: Locker, directory: Path, rounds: int) -> str:
    """Play the rounds of an attack on a peer, and return what they came to."""
    if why := attack.inapplicable(locker):
        return why
    found = []
    for number in range(rounds):
        with scene_in(directory.with_name(f"{directory.name}-{number}"), locker, ttl=attack.ttl) as scene:
            found.append(attack.play(scene))
    return attack.tell(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description="Attack maintlock and its peers.")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only attacks with this in the title")
    parser.add_argument("--peer", action="append", metavar="NAME", choices=[locker.name for locker in LOCKERS])
    parser.add_argument("--rounds", type=int, help="instead of what each attack has by itself")
    return parser.parse_args()


def _print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
