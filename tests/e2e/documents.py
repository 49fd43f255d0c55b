"""What the pages for users say, and what they tell to run: taken from the pages as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support import BIN, MAINTLOCK, PATIENCE_SECONDS, ROOT, Lock

PAGE_SECONDS = 8 * PATIENCE_SECONDS  # all commands of a page, one after the other


def blocks_of(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def console_commands(text: str, not_run: Mapping[str, str]) -> list[str]:
    """Return what is typed in a page's `console` blocks, but for commands that cannot run in a test, each with its reason."""
    lines = "".join(blocks_of(text, "console")).splitlines()
    typed = [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]
    assert set(not_run) <= set(typed), "what is excepted is not in the page any more"
    return [command for command in typed if command not in not_run]


def patient(commands: str, pause: str, condition: str) -> str:
    """Return a page's commands with a pause for people lasting until a command succeeds, however slow the machine is."""
    assert f"\n{pause}\n" in commands, "the page has no such pause any more"
    return commands.replace(f"\n{pause}\n", f"\nuntil {condition}; do sleep 0.1; done\n")


def broken_links(page: Path) -> list[str]:
    """Return the links of a page into the repository that lead nowhere, files and headings."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert links
    return [link for link in links if not _is_there(page, *link.partition("#")[::2])]


def _is_there(page: Path, file: str, heading: str) -> bool:
    target = page.parent / file if file else page
    if not target.exists() or not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


def copied_checkout(directory: Path) -> Path:
    """Copy what a checkout has for users, and give it a small knowledge base."""
    ignored = shutil.ignore_patterns(".work", "__pycache__", "node_modules")
    shutil.copytree(ROOT / "wrappers", directory / "wrappers", ignore=ignored)
    pages = directory / "wrappers" / "example" / ".work" / "kb"
    pages.mkdir(parents=True)
    (pages / "one.md").write_text("# One\n\nThe lease is held by one.\n", encoding="utf-8")
    return directory


def bare_example(lock: Lock, directory: Path) -> Path:
    """Copy the example project as it was before maintlock: without guards in `package.json`, and without configuration."""
    project = copied_checkout(directory) / "wrappers" / "example"
    (project / "maintlock.toml").unlink()
    assert run(lock, MAINTLOCK, "guard", "--undo", cwd=project).returncode == 0
    assert "maintlock-wrap" not in (project / "package.json").read_text(encoding="utf-8")
    return project


def run(lock: Lock, *command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with a home of its own."""
    own = {"HOME": str(cwd), "npm_config_update_notifier": "false", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=cwd, env={**(lock.env() if env is None else env), **own}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PAGE_SECONDS, start_new_session=True,
    )  # fmt: skip
