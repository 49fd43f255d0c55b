"""The torture in short, as CI runs it; `make torture SECONDS=600` runs it for as long as asked."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys

import pytest

from tests.support import ROOT

SHORT_SECONDS = 60
BROKEN_SECONDS = 60
SLACK_SECONDS = 240  # the last epoch, its settling and its last request, on a machine that is ten times as slow
pytestmark = [
    pytest.mark.xdist_group("torture"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its witness looks into /proc"),
]


def tortured(*options: str, seconds: float) -> tuple[int, str]:
    """Return exit code and output of a run; whoever is still there after it is killed with it."""
    seed = random.SystemRandom().getrandbits(32)
    argv = [sys.executable, "-m", "tests.torture", "--seconds", str(seconds), "--seed", str(seed), *options]
    popen = subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        out, _ = popen.communicate(timeout=seconds + SLACK_SECONDS)
    except subprocess.TimeoutExpired:
        popen.send_signal(signal.SIGTERM)  # it then kills what it has started
        out, _ = popen.communicate()
    print(out)
    return popen.returncode, out


def wrong(out: str) -> str:
    """Return what a run says was wrong, in the one line that a summary of tests shows."""
    told = [line.strip() for line in out.splitlines() if re.match(r" {11}\w|.*problems$|torture: ", line)]
    return " | ".join(told) or out


@pytest.mark.timeout(SHORT_SECONDS + SLACK_SECONDS + 60)
def test_short() -> None:
    """Whatever strikes, no two are at work at once, nothing stays held, and history has every grant with one end."""
    code, out = tortured("--discard", seconds=SHORT_SECONDS)
    assert code == 0, wrong(out)


@pytest.mark.timeout(BROKEN_SECONDS + SLACK_SECONDS + 60)
@pytest.mark.parametrize(
    ("broken", "kinds"), [("lock", {"overlap"}), ("survivors", {"overlap"}), ("history", {"lost"})]
)
def test_broken_lease_is_found_out(broken: str, kinds: set[str]) -> None:
    """What is broken on purpose is found out: a lease by those who work under it, a history by what they remember."""
    families = {"lock": ["peace"], "survivors": ["survivors"], "history": ["peace"]}[broken]
    code, out = tortured("--broken", broken, *(f"--only={name}" for name in families), seconds=BROKEN_SECONDS)
    found = {name for count, name in re.findall(r"^ +(\d+)  (\w+)$", out, re.MULTILINE) if int(count)}
    assert (code, kinds - found) == (1, set()), wrong(out)
