"""What is in `grafana/`: by Grafana's own schema, by promtool, and by what the exporter really tells."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support import BIN, ROOT

GRAFANA = ROOT / "grafana"
RULES = GRAFANA / "prometheus"
BOARD = json.loads((GRAFANA / "dashboards" / "maintlock.json").read_text())
PANELS = BOARD["panels"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]] + [
    (found["name"], found["target"]["expr"]) for found in BOARD["annotations"]["list"]
]
ALERTS = {block.split("\n", 1)[0]: block for block in (RULES / "alerts.yml").read_text().split("- alert: ")[1:]}
# Grafana has these beside the query of an annotation; the schema knows the query only.
NOT_IN_SCHEMA = {"titleFormat", "textFormat", "tagKeys"}
WATCHED = "and on (job, instance) job_instance:maintlock_watched:offset5m"


def named(items: list[tuple[str, str]]) -> Any:
    """Return the parameters of one test for each expression, named by its panel."""
    return pytest.mark.parametrize("expr", [pytest.param(expr, id=title) for title, expr in items])


@pytest.fixture
def promtool(require: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give `promtool(*arguments)`, run among the rules unless said otherwise."""
    path = require("promtool")

    def run(*arguments: str, cwd: Path = RULES, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([path, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give what the exporter tells of the example's configuration and an empty state directory."""
    state = tmp_path_factory.mktemp("state", numbered=True)
    state.chmod(0o700)
    config = ROOT / "wrappers" / "example" / "maintlock.toml"
    arguments = ["--once", "--config", str(config), "--state-dir", str(state)]
    return subprocess.run(
        [BIN / "maintlock-exporter", *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


# The dashboard --------------------------------------------------------------------------------------------------------


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what one has and the other has not, or has otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            if name not in NOT_IN_SCHEMA:
                yield from lost(value, theirs.get(name), f"{path}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}/{index}")
    elif ours != theirs:
        yield f"{path}: {ours!r} is {theirs!r}"


def test_dashboard_is_of_the_schema() -> None:
    """Grafana's own types read the dashboard and lose nothing of it: every name and value in it is one that they know."""
    plugins.register_default_plugins()
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(BOARD)))
    assert list(lost(BOARD, read)) == []


def test_dashboard_is_read_only_and_of_a_known_version() -> None:
    """The dashboard says which schema it is of, and that it is edited in its file."""
    assert (BOARD["schemaVersion"], BOARD["editable"], BOARD["uid"]) == (42, False, "maintlock")


def test_every_panel_says_what_it_shows() -> None:
    """Every panel has a title, a description and a unit of its own."""
    for panel in PANELS:
        assert panel["title"] and panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    assert len({panel["title"] for panel in PANELS}) == len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_panels_fill_the_page_without_overlapping() -> None:
    """No panel covers another or leaves the grid, and no row has a hole."""
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in PANELS)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert set(cells) == {(x, y) for x in range(24) for y in range(max(y for _, y in cells) + 1)}


def test_everything_asks_the_chosen_data_source() -> None:
    """Panels, queries, annotations and variables use the variable `datasource`."""
    asked = [panel["datasource"] for panel in PANELS]
    asked += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    asked += [found[key]["datasource"] if key else found["datasource"]
              for found in BOARD["annotations"]["list"] for key in ("", "target")]  # fmt: skip
    asked += [found["datasource"] for found in BOARD["templating"]["list"] if found["type"] == "query"]
    assert asked == [{"type": "prometheus", "uid": "${datasource}"}] * len(asked)


def test_job_and_instance_are_chosen_several_at_a_time() -> None:
    """`job` and `instance` allow several values and all of them."""
    variables = {found["name"]: found for found in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        assert (variables[name]["multi"], variables[name]["includeAll"]) == (True, True)


@named(EXPRESSIONS)
def test_every_selector_is_for_the_chosen_machines(expr: str) -> None:
    """Every selector of an expression takes `job` and `instance` by `=~`: they may have several values."""
    selectors = re.findall(r"\{([^}]*)\}", expr)
    assert len(selectors) == len(re.findall(r"\bmaintlock_[a-z_]+\{|\bALERTS\{", expr)) > 0
    assert not re.search(r"\bmaintlock_[a-z_]+\b(?![{=])(?!\s*=)", expr), "a metric without a selector"
    for selector in selectors:
        assert re.search(r'\bjob=~"\$job\|?"', selector)
        assert re.search(r'\binstance=~"\$instance\|?"', selector)


@named([(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]])
def test_increases_are_over_intervals_that_grafana_chooses(expr: str) -> None:
    """Counters are never shown bare, and in panels over `$__rate_interval` or the chosen time, not over a fixed one."""
    for name in re.findall(r"\bmaintlock_[a-z_]+_(?:total|bucket|sum|count)\b", expr):
        assert re.search(rf"(?:rate|increase)\({name}\{{[^}}]*\}}\[\$__(?:rate_interval|range)\]\)", expr)


def test_expressions_parse(promtool: Callable[..., Any], tmp_path: Path) -> None:
    """Promtool takes each expression of the dashboard, wrapped as a recording rule."""
    rules = [
        {"record": f"panel:{index}", "expr": re.sub(r"\$__\w+", "5m", expr), "labels": {"panel": title}}
        for index, (title, expr) in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "panels.yml"  # YAML reads JSON
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(EXPRESSIONS)} rules found" in done.stdout


@pytest.mark.parametrize("name", ["Collisions", "Crashes"])
def test_annotations_are_seen_with_a_scrape_a_minute(promtool: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """What happened once is marked, also where a minute passes between scrapes."""
    expr = re.sub(r"\$\w+", ".+", dict(EXPRESSIONS)[name])
    counter = re.search(r"maintlock_\w+", expr)
    assert counter is not None
    test = {
        "interval": "1m",
        "input_series": [{"series": f'{counter[0]}{{job="maintlock", instance="laptop"}}', "values": "0x10 1x60"}],
        "promql_expr_test": [
            {"expr": f"count({expr}) or vector(0)", "eval_time": f"{minute}m30s", "exp_samples": [{"labels": "{}", "value": is_marked}]}
            for minute, is_marked in ((10, 0), (11, 1), (14, 1), (40, 0))
        ],
    }  # fmt: skip
    path = tmp_path / "annotations.test.yml"
    path.write_text(json.dumps({"rule_files": [], "tests": [test]}))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", [*EXPRESSIONS, *[(name, (RULES / name).read_text()) for name in ("rules.yml", "alerts.yml")]],
                         ids=lambda source: source[0])  # fmt: skip
def test_only_what_is_told_is_asked_for(source: tuple[str, str], told: str) -> None:
    """Every metric in the dashboard and the rules is one that the exporter tells."""
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", told, re.MULTILINE))
    names = set(families) | {
        f"{name}_{part}"
        for name, kind in families.items()
        if kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    text = re.sub(r"^\s*#.*$|\b\w+:maintlock_\w+:\w+\b|[$\"'][^\"'\n]*[\"']", "", source[1], flags=re.MULTILINE)
    text = re.sub(r"maintlock_lease_state(?==)", "", text)
    asked = set(re.findall(r"\bmaintlock_[a-z_]+\b", text))
    assert asked <= names
    assert asked or "ALERTS" in source[1]


# The exporter ---------------------------------------------------------------------------------------------------------


def test_metrics_pass_promtools_lint(promtool: Callable[..., Any], told: str) -> None:
    """Promtool has nothing to say about names, types and help of what the exporter tells."""
    done = promtool("check", "metrics", input=told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Rules and alerts -----------------------------------------------------------------------------------------------------


def test_rules_pass_promtools_lint(promtool: Callable[..., Any]) -> None:
    """Promtool takes rules and alerts with all its lints, and the configuration that loads them."""
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tests", ["alerts.test.yml", "suspend.test.yml"])
def test_alerts_fire_when_they_should(promtool: Callable[..., Any], tests: str) -> None:
    """Each alert fires and does not fire; none does because a machine was suspended."""
    done = promtool("test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_its_care_a_suspend_would_page(promtool: Callable[..., Any], tmp_path: Path) -> None:
    """The test of the suspend sees what it is there for: without their care for it, alerts fire on waking up."""
    for path in RULES.glob("*.yml"):
        shutil.copy(path, tmp_path)
    text = (RULES / "alerts.yml").read_text().replace(WATCHED, "")
    (tmp_path / "alerts.yml").write_text(re.sub(r"^ +and .* offset 5m\)?\n", "", text, flags=re.MULTILINE))
    done = promtool("test", "rules", "suspend.test.yml", cwd=tmp_path)
    assert done.returncode != 0
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', done.stdout + done.stderr))
    # A counter that has risen during the sleep has not risen since.
    assert fired == set(ALERTS) - {"MaintlockEventsDropped"}


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_is_tested_both_ways(alert: str) -> None:
    """There is a test in which the alert fires, and one in which it does not."""
    checks = re.split(r"^ +- eval_time: ", (RULES / "alerts.test.yml").read_text(), flags=re.MULTILINE)[1:]
    ours = [check for check in checks if f"alertname: {alert}\n" in check]
    assert {"exp_alerts:" in check for check in ours} == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_waits_and_explains_itself(alert: str) -> None:
    """Each alert waits for at least five minutes, begins anew after a suspend, and says what is the matter."""
    block = ALERTS[alert]
    found = re.search(r"^ +for: (\d+)m$", block, re.MULTILINE)
    assert found is not None and int(found[1]) >= 5
    # Where nothing is told there is nothing to be watched: what was scraped before has to do for each arm.
    arms = len(re.findall(r"^ +(?:or .*|up.*== 0)$", block, re.MULTILINE))
    assert WATCHED in block or len(re.findall(r"^ +and .* offset 5m\)?$", block, re.MULTILINE)) == arms == 3
    for part in ("severity", "summary", "description", "runbook_url"):
        assert re.search(rf"^ +{part}: \S", block, re.MULTILINE), part
    docs = (ROOT / "docs" / "watching.md").read_text()
    assert re.search(rf"^\| `{alert}` \|.*\| {found[1]} min \|$", docs, re.MULTILINE), "docs/watching.md lists it"


def test_only_what_is_overdue_needs_an_interval() -> None:
    """A task can starve and fail whatever it is due by, an inbox or another task; only lateness is measured by an interval (L3)."""
    named = {alert for alert, block in ALERTS.items() if "maintlock_task_interval_seconds" in block}
    assert named == {"MaintlockTaskOverdue"}


# Documents ------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> list[str]:
    """Return what links can point to in a Markdown file."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def test_runbook_has_a_section_for_each_alert() -> None:
    """Each alert's link leads to a section of its own that says what it means, how to look and what to do."""
    for alert, block in ALERTS.items():
        (link,) = re.findall(r"runbook_url: (\S+)", block)
        path, _, anchor = link.partition("#")
        assert anchor == alert.lower()
        assert anchor in anchors(ROOT / path)
    sections = re.split(r"^## ", (GRAFANA / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.split("\n")[0] for section in sections] == list(ALERTS)
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == ["What it means.", "How to look.", "What to do."]


def test_commands_of_the_page_run_in_order(promtool: Callable[..., Any], tmp_path: Path) -> None:
    """The commands of docs/watching.md that start no server run one after the other, from the root of a checkout."""
    shutil.copytree(GRAFANA, tmp_path / "grafana")
    collected, system = tmp_path / "root/var/lib/prometheus/node-exporter", f"{tmp_path}/root"
    collected.mkdir(parents=True)
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "watching.md").read_text(), re.MULTILINE | re.DOTALL)
    place, servers, *rest = [re.sub(r"(/(?:etc|var)/)", rf"{system}\1", block) for block in blocks]
    path = f"{BIN}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "MAINTLOCK_CONFIG": "none", "MAINTLOCK_STATE_DIR": str(tmp_path)}
    script = "\n".join(["set -e", place.replace("ls ", "echo "), *rest])
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{(BIN / 'maintlock').resolve().parents[1]}/share/maintlock\n")
    assert [file.name for file in collected.iterdir()] == ["maintlock.prom"]
    assert len(list((tmp_path / "root").glob("**/*grafana/**/maintlock.*"))) == 3
    alerts = (tmp_path / "grafana/prometheus/alerts.yml").read_text()
    assert alerts.count("runbook_url: https://git.example/") == len(ALERTS)
    (config,) = re.findall(r"--config.file=(\S+)", servers)
    assert promtool("check", "config", config, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("document", ["grafana/runbook.md", "docs/watching.md"])
def test_links_resolve(document: str) -> None:
    """Links to other files and their sections lead somewhere, and panels that are mentioned exist."""
    path = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target
    titles = {panel["title"] for panel in PANELS}
    for mention in re.findall(r"panels?\s+\*([^*]+)\*", path.read_text()):
        assert re.sub(r"\s+", " ", mention) in titles


def test_provisioning_is_read_only_and_finds_the_dashboard() -> None:
    """What is provisioned cannot be changed in Grafana, and keeps no secret."""
    for kind in ("dashboards", "datasources"):
        text = (GRAFANA / "provisioning" / kind / "maintlock.yaml").read_text()
        assert "\napiVersion: 1\n" in text
        assert not re.search(r"password|token|secure", text, re.IGNORECASE)
        assert re.search(r"^ +(?:editable|allowUiUpdates): false$", text, re.MULTILINE)
    path = re.search(r"^ +path: (\S+)$", (GRAFANA / "provisioning/dashboards/maintlock.yaml").read_text(), re.MULTILINE)
    assert path is not None and f"maintlock.json -t {path[1]}\n" in (ROOT / "docs" / "watching.md").read_text()
