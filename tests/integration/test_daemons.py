from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from maintlock import config, paths
from maintlock.names import is_task_name
from maintlock.orchestrator.daemons import Daemon, Daemons, log_name
from maintlock.settings import DaemonSettings
from tests.orchestrated import Orchestration
from tests.support import read_open_files, until


def daemon(name: str, script: str, *settings: str, cooldown: str = "300ms") -> str:
    """Return a daemon that runs a shell script."""
    shown = json.dumps(["sh", "-c", script])
    return "\n".join([f"[daemons.{name}]", f"command = {shown}", f'cooldown = "{cooldown}"', *settings, ""])


def server(o: Orchestration, name: str, **more: str) -> str:
    """Return a daemon that tells its pid, and runs until it is killed."""
    return daemon(name, f'echo $$ >> "{o.place}/{name}.pids"; exec sleep 1000', **more)


def pids(o: Orchestration, name: str) -> list[int]:
    """Return the pids that a daemon has had."""
    path = o.place / f"{name}.pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def until_up(o: Orchestration, name: str, times: int = 1) -> int:
    """Return a daemon's pid, once it has come up that many times and is on record."""
    until(lambda: len(pids(o, name)) >= times, f"{name} to come up")
    pid = pids(o, name)[-1]
    until(lambda: o.record()["daemons"].get(name, {}).get("pid") == pid, "its record")
    return pid


def kill(pid: int) -> float:
    """Kill a process, and return when."""
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return at


def test_a_daemon_is_started_and_restarted(o: Orchestration) -> None:
    """A daemon that dies is started again when its cooldown is over, and not only at the next poll (R5)."""
    o.configure(server(o, "chroma"), head='poll_interval = "1h"\n')
    running = o.start()
    died_at = kill(until_up(o, "chroma"))
    line = o.until_logged("daemon_died")
    assert (line["daemon"], line["exit_code"], line["level"]) == ("chroma", -9, "WARNING")
    until_up(o, "chroma", 2)
    assert time.monotonic() - died_at >= 0.25
    found = o.health(0)["daemons"]["chroma"]
    assert (found["state"], found["pid"], found["restarts"]) == ("up", pids(o, "chroma")[-1], 1)
    assert o.stop(running) == 0


def test_a_heavy_job_delays_no_restart(o: Orchestration) -> None:
    """Chroma, killed under a running backup, is back within its cooldown while the backup still has the lease (R5, R13)."""
    o.configure(server(o, "chroma"), o.task("backup"))
    o.start()
    o.until_began("backup")
    first = until_up(o, "chroma")
    kill(first)
    second = until_up(o, "chroma", 2)
    assert o.lock.status()["holder"]["task"] == "backup" and first != second
    o.let_go("backup")
    until(lambda: o.lock.history(outcome="completed", task="backup"))


def test_a_daemon_inherits_nothing_of_a_lock(o: Orchestration) -> None:
    """A daemon has no descriptor of any lock, no grant in its environment, and a session of its own; so it keeps neither
    the lease nor the orchestrator's place (R5).
    """
    o.configure(server(o, "chroma"))
    running = o.start(env=o.lock.env(MAINTLOCK_HELD="heavy-maintenance:x:1", MAINTLOCK_LEASE_ID="x"))
    pid = until_up(o, "chroma")
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the shell to become it")
    inherited = {str(o.lock.directory / "logs" / "daemon@chroma.log"), os.devnull}
    until(lambda: set(read_open_files(pid)) == inherited, "all to be closed that it opens to begin with")
    given = until(Path(f"/proc/{pid}/environ").read_text, "its environment, which comes after its name")
    environ = dict(entry.partition("=")[::2] for entry in given.split("\0") if entry)
    assert {name for name in environ if name.startswith("MAINTLOCK_")} == {
        "MAINTLOCK_STATE_DIR", "MAINTLOCK_CONFIG", "MAINTLOCK_DAEMON",
    }  # fmt: skip
    assert os.getsid(pid) == pid
    o.stop(running, signal.SIGKILL)
    assert o.once() == 0
    assert o.pid_alive(pid)


def test_no_task_has_a_daemons_log(o: Orchestration) -> None:
    """What a daemon and a task print is kept apart, whatever the task is called."""
    assert not is_task_name(log_name("chroma"))
    o.configure(daemon("chroma", "echo of-daemon; exec sleep 1000"), o.task("daemon-chroma", ends="echo of-task"))
    o.start()
    o.until_logged("task_ended", task="daemon-chroma")
    logs = o.lock.directory / "logs"
    assert (logs / "daemon-chroma.log").read_text() == "of-task\n"
    until(lambda: (logs / "daemon@chroma.log").read_text() == "of-daemon\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_successor_adopts(o: Orchestration, number: signal.Signals) -> None:
    """A daemon outlives its orchestrator, is adopted by the next one by who it is, and supervised as before (R8)."""
    o.configure(server(o, "chroma"))
    running = o.start()
    pid = until_up(o, "chroma")
    o.stop(running, number)
    running = o.start()
    assert o.until_logged("daemon_adopted")["pid"] == pid
    o.passes()
    assert pids(o, "chroma") == [pid]
    kill(pid)
    until_up(o, "chroma", 2)
    assert o.stop(running) == 0


def test_one_that_is_not_on_record_is_adopted(o: Orchestration) -> None:
    """A daemon whose orchestrator was killed before it wrote its record is found by its mark, and not started twice."""
    o.configure(server(o, "chroma"))
    running = o.start()
    pid = until_up(o, "chroma")
    o.stop(running, signal.SIGKILL)
    (o.lock.directory / "orchestrator.json").unlink()
    running = o.start()
    assert o.until_logged("daemon_adopted")["pid"] == pid
    o.passes()
    assert pids(o, "chroma") == [pid]


def test_one_that_died_meanwhile_is_started(o: Orchestration) -> None:
    """A daemon that died while no orchestrator lived is started by the next one, and its pid is believed by nobody."""
    o.configure(server(o, "chroma"))
    o.stop(o.start(), signal.SIGTERM)
    pid = until_up(o, "chroma")
    kill(pid)
    until(lambda: not o.pid_alive(pid))
    o.start()
    until_up(o, "chroma", 2)
    assert o.health(0)["daemons"]["chroma"]["restarts"] == 1


def test_killed_while_a_daemon_is_down(o: Orchestration) -> None:
    """The cooldown goes on across a kill of the orchestrator: no successor starts the daemon before it is over (R5)."""
    o.configure(server(o, "chroma", cooldown="1h"))
    running = o.start()
    pid = until_up(o, "chroma")
    kill(pid)
    until(lambda: o.record()["daemons"]["chroma"]["restart_at"])
    o.stop(running, signal.SIGKILL)
    o.start()
    o.passes()
    assert o.health(1)["daemons"]["chroma"]["state"] == "down"
    assert pids(o, "chroma") == [pid]


def test_a_successor_keeps_the_cooldown(o: Orchestration) -> None:
    """A successor starts a daemon that was down when what is left of its cooldown is over (R5)."""
    o.configure(server(o, "chroma", cooldown="1s"))
    running = o.start()
    died_at = kill(until_up(o, "chroma"))
    until(lambda: o.record()["daemons"]["chroma"]["restart_at"])
    o.stop(running, signal.SIGKILL)
    o.start()
    until_up(o, "chroma", 2)
    assert time.monotonic() - died_at >= 0.95
    assert o.record()["daemons"]["chroma"]["restarts"] == 1


def test_stop_daemons(o: Orchestration) -> None:
    """With `--stop-daemons` they end with the orchestrator; without it they run on."""
    o.configure(server(o, "chroma"), server(o, "bridgeDaemon"))
    running = o.start()
    mine = [until_up(o, name) for name in ("chroma", "bridgeDaemon")]
    assert o.stop(running) == 0
    assert all(map(o.pid_alive, mine))
    running = o.start("--stop-daemons")
    assert o.stop(running) == 0
    until(lambda: not any(map(o.pid_alive, mine)))
    assert o.health(0)["daemons"]["chroma"]["state"] == "unsupervised"


def test_one_that_ignores_term(o: Orchestration) -> None:
    """A daemon that ignores TERM is killed when the grace is over."""
    directory = str(o.lock.directory)
    paths.open_state_directory(directory)
    o.configure(daemon("stubborn", f'trap "" TERM; echo $$ >> "{o.place}/stubborn.pids"; while :; do sleep 1000; done'))
    settings = config.load(str(o.config))
    found = Daemons(directory)
    found.configure(settings.daemons, {})
    found.tend(time.monotonic(), settings)
    until(lambda: pids(o, "stubborn"))
    found.stop(grace_seconds=0.2)
    until(lambda: not o.pid_alive(pids(o, "stubborn")[0]))


def test_one_that_cannot_be_started(o: Orchestration) -> None:
    """A daemon that cannot be started, or dies at once, is told and in health, and takes neither the others' time nor the
    processor's, even with no cooldown at all (R6).
    """
    bad = '[daemons.bad]\ncommand = ["/no/such/program"]\ncooldown = 0\n'
    o.configure(server(o, "chroma"), bad, daemon("brief", "exit 3", cooldown="0s"), o.task("kbSync", ends="true"))
    began_at = time.monotonic()
    running = o.start()
    o.until_logged("daemon_failed", daemon="bad")
    o.until_logged("daemon_died", daemon="brief", exit_code=3)
    until_up(o, "chroma")
    o.until_began("kbSync")
    o.passes(8)
    assert len(o.logged("daemon_failed")) == 1
    starts = len(o.logged("daemon_started", daemon="brief"))
    assert starts <= 1 + (time.monotonic() - began_at) / 0.1
    found = o.health(1)
    assert "No such file" in found["daemons"]["bad"]["detail"] and found["daemons"]["bad"]["state"] == "down"
    assert o.stop(running) == 0


def test_one_that_dies_again_and_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that dies again and again of the same is told ever more rarely; another way to die is told at once (R9)."""
    (tmp_path / "code").write_text("3")
    settings = DaemonSettings(name="bad", command=("sh", "-c", f"exit $(cat {tmp_path}/code)"), cooldown=0.0)
    no_config = config.load(None)
    found = Daemon(settings)
    now = 0.0

    def die() -> None:
        nonlocal now
        now += 1.0
        found.tend(now, str(tmp_path), no_config)
        assert found.child is not None
        until(lambda: found.child is None or found.tend(now, str(tmp_path), no_config))

    with caplog.at_level("INFO", "maintlock.orchestrator"):
        for _ in range(20):
            die()
        (tmp_path / "code").write_text("4")
        die()
    died = [line for line in caplog.messages if "ended" in line]
    assert [line.partition("(")[2] for line in died[1:-1]] == [f"{number} times in a row)" for number in (2, 4, 8, 16)]
    assert "exit code 3" in died[0] and "exit code 4" in died[-1] and "in a row" not in died[0] + died[-1]
    assert len([line for line in caplog.messages if line.startswith("bad started")]) == len(died)
    assert found.restarts == 21


def test_one_that_is_not_configured_any_more(o: Orchestration) -> None:
    """A daemon that is taken out of the configuration runs on unsupervised, and is adopted when it comes back."""
    chroma = server(o, "chroma")
    o.configure(chroma)
    running = o.start()
    pid = until_up(o, "chroma")
    o.configure("")
    running.signal(signal.SIGHUP)
    o.until_logged("daemon_released")
    assert o.pid_alive(pid)
    o.configure(chroma)
    running.signal(signal.SIGHUP)
    assert o.until_logged("daemon_adopted")["pid"] == pid
    assert o.stop(running) == 0
    assert pids(o, "chroma") == [pid]
