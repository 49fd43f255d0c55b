"""What is done to each peer: one function per attack, which plays one round and says what came of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from maintlock import process
from tests.bench.measure import waiting_pids
from tests.peers.guard import BEGINS_AT, CANNOT, DEFERRED
from tests.peers.lockers import OTHER_BOOT, TRY, WAIT, Origin, env
from tests.peers.scene import LONG, Scene, parent_of, put_down, stop
from tests.protocol import kill, until_gone
from tests.support import PATIENCE_SECONDS, until

TTL_SECONDS = 1.0
WAITERS = 4
OTHER_NAMESPACE = "1"  # the kernel begins to count far above
NOBODY = 2**22 + 1  # larger than any PID
TOGETHER_NS = 500_000_000  # until all of those who begin together have started
OVERLAP, STOOD_BACK = "two at work", "stood back"
OUTCOMES = {DEFERRED: STOOD_BACK, CANNOT: "refused"}
LEFT_BEHIND = 'echo $$ > main; "$@" & until [ -s journal ]; do sleep 0.02; done'
DAEMON = (
    'setsid sh -c "echo \\$\\$ > daemon; exec sleep 1000" < /dev/null > /dev/null 2>&1 &'
    " until [ -s daemon ]; do sleep 0.02; done"
)
DISK = """
mount -t tmpfs -o size=1m,mode=700 peers place || exit
"$@"; echo $?
dd if=/dev/zero of=place/filler bs=4k 2> /dev/null
"$@"; echo $?
rm place/filler
"$@"; echo $?
"""
Round = Callable[[Scene], object]


def second(scene: Scene) -> str:
    """Have another one try, and tell what came of it while the first one is at work."""
    code = scene.attempt()
    if scene.overlaps():
        return OVERLAP
    assert not scene.begins("second") or code == 0
    return OUTCOMES.get(code, "runs")


def second_beside(scene: Scene) -> str:
    """Do the same where the first one is at work for certain: who runs and is not seen has blinded the witness."""
    found = second(scene)
    assert found != "runs", "the witness has seen nothing"
    return found


def wrapper_killed(scene: Scene) -> str:
    """SIGKILL of the wrapper; its job is a shell script, and works on."""
    wrapper, _ = scene.hold(command=["sh", "-c", '"$@"; :', "sh", *scene.job("first")])
    put_down(wrapper)
    return second_beside(scene)


def wrapper_killed_under_npm(scene: Scene) -> str:
    """SIGKILL of the wrapper; its job is npm, and works on."""
    wrapper, _ = scene.hold(command=npm(scene))
    put_down(wrapper)
    return second_beside(scene)


def wrapper_and_npm_killed(scene: Scene) -> str:
    """SIGKILL of the wrapper and of npm; npm's script works on."""
    wrapper, pid = scene.hold(command=npm(scene))
    put_down(wrapper, main_process(wrapper, pid))
    return second_beside(scene)


def wrapper_and_parent_killed(scene: Scene) -> str:
    """SIGKILL of the wrapper and of the Python program that it runs; what that has started works on."""
    program = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    wrapper, pid = scene.hold(command=[sys.executable, "-c", program, *scene.job("first")])
    put_down(wrapper, main_process(wrapper, pid))
    return second_beside(scene)


def npm(scene: Scene) -> list[str]:
    """Return the command that runs the job as npm's script."""
    script = " ".join(scene.job("first"))
    (scene.directory / "package.json").write_text(json.dumps({"scripts": {"job": script}}))
    return ["npm", "run", "--silent", "job"]


def main_process(wrapper: subprocess.Popen[bytes], pid: int) -> int:
    """Return the wrapper's child that a process descends from."""
    while (parent := parent_of(pid)) != wrapper.pid:
        pid = parent
    return pid


def all_killed(scene: Scene) -> float | str:
    """SIGKILL of wrapper and job while another one waits: milliseconds until that works."""
    wrapper, pid = scene.hold()
    scene.wait_in_line(1, scene.job("second", 0))
    killed_ns = time.monotonic_ns()
    put_down(wrapper, pid)
    return served(scene, "second", killed_ns) or "stuck"


def served(scene: Scene, name: str, since_ns: int) -> float | None:
    """Return after how many milliseconds somebody worked, or None where that is not seen."""
    deadline = time.monotonic() + scene.patience_seconds
    while time.monotonic() < deadline:
        if begins := scene.begins(name):
            return (begins[0].at_ns - since_ns) / 1e6
        time.sleep(0.005)
    return None


def left_behind(scene: Scene) -> str:
    """The main process ends by itself; a child of it works on, and has kept no descriptor."""
    return _left_behind(scene, scene.job("first", LONG, "alone"), is_waited_for=scene.locker.waits_for_leftovers)


def left_session(scene: Scene) -> str:
    """The main process ends by itself; a child works on in a session of its own, with the descriptors that it was given."""
    return _left_behind(scene, ["setsid", *scene.job("first")], is_waited_for=False)


def _left_behind(scene: Scene, child: list[str], *, is_waited_for: bool) -> str:
    wrapper, _ = scene.hold(command=["sh", "-c", LEFT_BEHIND, "sh", *child])
    until_gone(int((scene.directory / "main").read_text()))
    if not is_waited_for:
        wrapper.wait()
    return second_beside(scene)


def lock_file_deleted(scene: Scene) -> str:
    """The lock file is deleted while held."""
    scene.hold()
    scene.lock.unlink()
    return second_beside(scene)


def lock_file_replaced(scene: Scene) -> str:
    """The lock file is replaced by its copy while held."""
    scene.hold()
    copy = scene.directory / "copy"
    shutil.copy(scene.lock, copy)
    copy.rename(scene.lock)
    return second_beside(scene)


def before_reboot() -> Origin:
    """Return where a holder was a minute before this machine started."""
    return Origin((process.booted_at() or 0.0) - 60, OTHER_BOOT, process.pid_namespace())


def stale_file(scene: Scene) -> str:
    """What a holder from before a reboot has left names a PID that somebody else has now."""
    scene.locker.leave_stale(scene.place, before_reboot())
    return second(scene)


def container_file(scene: Scene) -> str:
    """The same from PID 1 of a container on this machine, which is gone; PID 1 lives here too."""
    scene.locker.leave_stale(scene.place, Origin(time.time(), process.boot_id(), OTHER_NAMESPACE))
    return second(scene)


def foreign_file(scene: Scene) -> str:
    """The same from another system, granted while this one ran: they share the disk, or one has a copy of it."""
    scene.locker.leave_stale(scene.place, Origin(time.time(), OTHER_BOOT, process.pid_namespace()))
    return second(scene)


def stale_file_of_many(scene: Scene) -> str:
    """Four find at the same moment what a dead holder has left: a PID that nobody has, and older than every TTL."""
    scene.locker.leave_stale(scene.place, before_reboot())
    if scene.locker.name.startswith("PID"):
        scene.lock.write_text(json.dumps({"owner": "a", "pid": NOBODY, "acquired_at": 0}))
    at = str(time.monotonic_ns() + TOGETHER_NS)
    running = [scene.start(TRY, scene.job(f"job{number}", 0.1), **{BEGINS_AT: at}) for number in range(WAITERS)]
    for one in running:
        one.wait()
    return OVERLAP if scene.overlaps() else "one"


def longer_than_ttl(scene: Scene) -> str:
    """The holder works on beyond the TTL, and another one waits."""
    scene.hold()
    scene.start(WAIT, scene.job("second", 0))
    # Where they poll it may be past the TTL already when it comes, and has no need to wait.
    until(lambda: waiting(scene) or scene.begins("second"), "who waits, or works at once")
    seconds = scene.patience_seconds if scene.locker.goes_by_age else 4 * TTL_SECONDS
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not scene.overlaps():
        time.sleep(0.02)
    assert scene.overlaps() or not scene.begins("second")
    return "robbed: " + OVERLAP if scene.overlaps() else "not robbed"


def stopped_waiter(scene: Scene) -> float | str:
    """Who waits first is stopped (SIGSTOP), then the holder ends: milliseconds until the next in line works."""
    wrapper, pid = scene.hold()
    head = scene.wait_in_line(1, scene.job("head", 0))
    stop(head.pid)
    scene.start(WAIT, scene.job("second", 0))
    until(lambda: waiting(scene) - {head.pid}, "another waiter")
    ended_ns = time.monotonic_ns()
    put_down_job(wrapper, pid)
    return served(scene, "second", ended_ns) or "blocked"


def waiting(scene: Scene) -> set[int]:
    """Return the PIDs of those who wait for the lock, or have begun to."""
    if scene.locker.is_kernels_queue:
        return set(waiting_pids(scene.lock)) if scene.lock.exists() else set()
    return {int(path.suffix[1:]) for path in scene.place.glob("*.waiting.*")}


def put_down_job(wrapper: subprocess.Popen[bytes], pid: int) -> None:
    """Have the job end and its wrapper with it, in good order."""
    kill(pid, signal.SIGTERM)
    wrapper.wait()


def hammered(scene: Scene) -> Counter[str]:
    """Four wait and one tries without a pause: who was served until the last of the four was, or patience is at an end."""
    log = scene.directory / "log"
    wrapper, pid = scene.hold()
    for number in range(WAITERS):
        scene.wait_in_line(number + 1, ["sh", "-c", 'echo waiter >> "$1"', "sh", str(log)])
    scene.start_as_is(scene.locker.hammer(scene.place, log))
    until(log.exists, "the hammerer")
    put_down_job(wrapper, pid)
    deadline = time.monotonic() + scene.patience_seconds
    while (served_ones := log.read_text().split()).count("waiter") < WAITERS and time.monotonic() < deadline:
        time.sleep(0.02)
    last = len(served_ones)
    if served_ones.count("waiter") == WAITERS:
        last -= served_ones[::-1].index("waiter")
    found = Counter(served_ones[:last])
    found["unserved"] = WAITERS - found["waiter"]
    return found


def order(scene: Scene) -> int:
    """Four come one after the other and wait: of the six pairs, those in which the later one was served first."""
    wrapper, pid = scene.hold()
    for number in range(WAITERS):
        scene.wait_in_line(number + 1, scene.job(f"job{number}", 0))
    put_down_job(wrapper, pid)
    begun = [scene.until_at_work(f"job{number}") and scene.begins(f"job{number}")[0].at_ns for number in range(WAITERS)]
    return sum(later < earlier for place, earlier in enumerate(begun) for later in begun[place + 1 :])


def nested_wait(scene: Scene) -> str:
    """A job starts another one under the same lock, which would wait."""
    return _nested(scene, WAIT)


def nested_try(scene: Scene) -> str:
    """A job starts another one under the same lock, which would not wait."""
    return _nested(scene, TRY)


def _nested(scene: Scene, how: str) -> str:
    wrapper = scene.start(TRY, scene.argv(how, scene.job("inner", 0)))
    until(lambda: wrapper.poll() is not None or waiting(scene), "an end, or a wait for what cannot come")
    if wrapper.poll() is None:
        return "waits for itself"
    return "joins" if scene.begins("inner") else STOOD_BACK


def daemon(scene: Scene) -> str:
    """A daemon that the job has started, with all descriptors, lives on after the job's normal end."""
    scene.start(TRY, ["sh", "-c", DAEMON]).wait(PATIENCE_SECONDS)
    return "free" if second(scene) == "runs" else "kept"


def daemon_after_kill(scene: Scene) -> str:
    """The same after SIGKILL of wrapper and job."""
    wrapper, pid = scene.hold(command=["sh", "-c", f'{DAEMON}; exec "$@"', "sh", *scene.job("first")])
    put_down(wrapper, pid)
    return "free" if second(scene) == "runs" else "kept"


def disk_full(scene: Scene) -> str:
    """The disk with the lock file runs full, and has room again."""
    own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", DISK, "sh"]
    running = subprocess.run(
        [*own, *scene.argv(TRY, ["true"])], cwd=scene.directory, env=env(scene.directory),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    codes = [int(text) for text in running.stdout.split()]
    assert len(codes) == 3 and codes[0] == 0, running
    full = "runs" if codes[1] == 0 else "refuses"
    return f"{full}; then runs" if codes[2] == 0 else f"{full}; then stuck"
