"""Hold the lease again and again beside one long-lived process, until standard input closes: KIND DIRECTORY SEED PATCH WORKER….

KIND is `hold` (the library, in this process) or `coprocess` (`maintlock hold` on our own descriptor of the lock file). PATCH
is executed first, with `take(module, name, stand_in)` as in `patched_wrap.py`. The file `tally` gets a line for each attempt
that is over: kind, what became of it, the pid that is on record, the grant, and when it began and was over (monotonic).
"""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import subprocess
import sys
import time

from witness import Witness  # beside this file

import maintlock
from maintlock.errors import MaintlockError

DEFERRED, FAILED, STOPPED = 9, 3, 143
SIGNAL_BASE = 128
PROGRAM = os.path.join(os.path.dirname(sys.executable), "maintlock")
Attempt = tuple[str, int, str]


class OnPurpose(Exception):  # noqa: N818  it is no error of anybody's
    """A job that fails."""


def take(module: str, name: str, stand_in: object) -> None:
    """Replace one thing of one module."""
    setattr(importlib.import_module(module), name, stand_in)


kind, directory, seed, patch, *worker = sys.argv[1:]
exec(patch, {"take": take})
rng = random.Random(seed)
witness = Witness(directory)


def work(grant: str, fence: int, env: dict[str, str]) -> None:
    """Be at work for a moment: in this process, at times in a child, at times in a block inside."""
    witness.begin(grant, str(fence), kind)
    try:
        time.sleep(rng.choice((0, 0, 0, 0.001, 0.004)))
        if rng.random() < 0.04:
            took = str(rng.randrange(5_000))
            subprocess.run([*worker, directory, "child", took, "0", "0"], env={**os.environ, **env}, check=False)
        if kind == "hold" and rng.random() < 0.04:
            with maintlock.hold("inside"):
                pass
    finally:
        witness.end()  # also where nothing can be started: the lease is given back then, and our work is over
    if rng.random() < 0.02:
        raise OnPurpose


def held() -> Attempt:
    """Hold the lease once, and return what became of it, our pid, and the grant."""
    grant = "-"
    try:
        with maintlock.hold("hold", wait=rng.choice((None, None, "200ms", "forever", "forever", "forever"))) as lease:
            grant = lease.id
            work(lease.id, lease.fence, lease.env)
    except maintlock.LeaseHeld:
        return "deferred", os.getpid(), "-"
    except OnPurpose:
        return "failed", os.getpid(), grant
    except MaintlockError as error:
        print(f"hold: {error}", file=sys.stderr, flush=True)
        time.sleep(0.05)
        return "refused", os.getpid(), "-"
    return "completed", os.getpid(), grant


def accompanied() -> Attempt:
    """Have a helper hold it once on a descriptor of ours, and return what became of it, its pid, and the grant."""
    try:
        fd = os.open(f"{directory}/state/heavy-maintenance.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        print(f"coprocess: {error}", file=sys.stderr, flush=True)
        time.sleep(0.05)
        return "refused", os.getpid(), "-"
    try:
        return accompanied_on(fd)
    finally:
        os.close(fd)  # the helper is gone: where it was killed, this is what frees the lock


def accompanied_on(fd: int) -> Attempt:
    """Do so on this descriptor, and return once the helper is gone."""
    patience = rng.choice(([], ["-w", "200ms"], ["-w", "forever"], ["-w", "forever"]))
    argv = [PROGRAM, "hold", "-t", "coprocess", "-E", str(DEFERRED), "--fd", str(fd), *patience]
    helper = subprocess.Popen(argv, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert helper.stdin is not None and helper.stdout is not None
    said, code = json.loads(helper.stdout.readline() or "{}"), 0
    is_granted = said.get("event") == "granted"
    if is_granted:
        try:
            work(said["lease_id"], said["fence"], said["env"])
        except OnPurpose:
            code = FAILED
    try:
        helper.stdin.write(f"{code}\n".encode())
    except BrokenPipeError:
        pass
    helper.stdin.close()
    helper.stdout.read()
    got = helper.wait()
    if not is_granted:
        return _without_grant(said.get("event"), got), helper.pid, "-"
    ending = {code: "failed" if code else "completed", STOPPED: "stopped"}
    return ending.get(got, "orphaned"), helper.pid, said["lease_id"]


def _without_grant(told: object, code: int) -> str:
    """Return what became of a request that got nothing: a helper struck before it could tell may have put a deferral on record."""
    if told == "deferred" or code == DEFERRED:
        return "deferred"
    return "struck" if code < 0 or code > SIGNAL_BASE else "refused"


while not select.select([0], [], [], rng.random() * 0.006)[0]:
    began = time.monotonic()
    what, pid, grant = held() if kind == "hold" else accompanied()
    witness.say("tally", f"{kind} {what} {pid} {grant} {began} {time.monotonic()}")
