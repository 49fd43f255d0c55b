"""`wrappers/bin/ai-*`: the heavy scripts of a project from anywhere inside it, under the lease."""

from __future__ import annotations

import pytest

from tests.e2e.project import FILES, FIRST_OPERATION, TASKS, Project, tools_without
from tests.support import ROOT

ENTRIES = ROOT / "wrappers" / "bin"
SAY = "console.log(JSON.stringify([process.env.MAINTLOCK_TASK, process.cwd(), ...process.argv.slice(2)]));\n"


def entry(script: str) -> str:
    """Return the path of a script's entry."""
    return str(ENTRIES / script.replace(":", "-"))


@pytest.mark.parametrize("script", TASKS)
def test_entry_works_from_a_sub_directory(project: Project, script: str) -> None:
    """An entry runs its script as its task from anywhere in the project, in the project's directory (R3)."""
    project.make_database()
    project.gate.shut()

    running = project.start(entry(script), cwd=project.directory / "buildScripts" / "ai")
    project.until_at_work(running, FIRST_OPERATION[script])
    held = project.lock.sidecar()
    (ended,) = project.finish(running)

    assert (ended[0], held["task"], held["cwd"]) == (0, TASKS[script], str(project.directory))
    assert f"{script}: done in" in ended[1]


def test_entries_stand_back(project: Project) -> None:
    """Each entry stands back while another works, whoever started that (R3)."""
    project.make_database()
    holder = project.hold("ai:sync-kb")

    for script, task in TASKS.items():
        stood_back = project.run(entry(script), cwd=project.directory / "kb")
        assert (stood_back.returncode, stood_back.stdout) == (0, "")
        assert f"{task} deferred due to active heavy-maintenance lease: held by kbSync (" in stood_back.stderr
    project.finish(holder)


def test_entry_passes_arguments_on(project: Project) -> None:
    """Arguments reach the script as they were given."""
    (project.directory / FILES["ai:backup"]).write_text(SAY, encoding="utf-8")

    said = project.run(entry("ai:backup"), "two words", "it's", "--flag", "", cwd=project.directory / "kb")

    assert said.stdout == f'["backup","{project.directory}","two words","it\'s","--flag",""]\n'


def test_entry_of_a_project_with_other_files(project: Project) -> None:
    """Where the project has no such file its npm script is run, whose own wrap joins."""
    (project.directory / "backup.mjs").write_text(SAY, encoding="utf-8")
    (project.directory / FILES["ai:backup"]).unlink()
    project.set_scripts(**{"ai:backup": "maintlock-wrap -t backup -- node backup.mjs"})

    said = project.run(entry("ai:backup"), "two words", cwd=project.directory / "kb")

    assert (said.returncode, said.stdout) == (0, f'["backup","{project.directory}","two words"]\n')
    assert [row["task"] for row in project.lock.history(event="nested_finished")] == ["backup"]


def test_entry_is_a_link_on_path(project: Project) -> None:
    """An entry that is linked into a directory on PATH finds its way."""
    (project.directory / FILES["ai:backup"]).write_text(SAY, encoding="utf-8")
    link = project.home / "ai-backup"
    link.symlink_to(entry("ai:backup"))

    assert project.run(str(link)).returncode == 0


def test_entry_outside_of_a_project(project: Project) -> None:
    """Outside of a project an entry says so (64)."""
    refused = project.run(entry("ai:backup"), cwd=project.home)

    assert refused.returncode == 64
    assert f"no package.json in {project.home} or above" in refused.stderr


def test_entry_without_the_wrapper(project: Project) -> None:
    """Without maintlock-wrap on PATH an entry runs nothing, and says how to mend that (127)."""
    env = project.env(PATH=tools_without(project.top / "tools", "maintlock-wrap"))

    refused = project.run(entry("ai:sync-kb"), env=env)

    assert (refused.returncode, refused.stdout) == (127, "")
    assert "ai:sync-kb does not run without the lease" in refused.stderr
    assert "from a checkout of maintlock: pipx install ." in refused.stderr
