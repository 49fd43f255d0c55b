from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from maintlock import events, pending
from maintlock_exporter import page as served
from tests import story
from tests.browser import Browser, browser
from tests.conftest import forget_surroundings, require_tool
from tests.headless import headless_in

HOSTILE = "</title><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">'\"\x1b[31m\u202e{{7*7}}"
PHONE = 390
FOR_EVER_SECONDS = 86400


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Give a real browser for all of them."""
    with browser(require_tool("chromium"), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Browser:
    """Give a page of the test's own."""
    chromium.turn_to_new_page()
    return chromium


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Give the configuration of the story."""
    path = tmp_path / "maintlock.toml"
    path.write_text(story.CONFIG)
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a page that has a whole day to tell, and that all of them only look at."""
    place = tmp_path_factory.mktemp("told")
    (place / "maintlock.toml").write_text(story.CONFIG)
    story.write_day(place / "state", time.time())
    with pytest.MonkeyPatch.context() as patch:
        forget_surroundings(patch)  # this is set up before the fixture that does so for each test
        with story.held_lock(place / "state"), story.served(place / "state", place / "maintlock.toml") as url:
            yield url


def is_wider_than_the_window(page: Browser) -> bool:
    """Tell whether one has to scroll sideways."""
    return bool(page.value("document.documentElement.scrollWidth > window.innerWidth"))


@contextmanager
def without_refresh() -> Iterator[None]:
    """Have pages served that do not load themselves anew while they are looked at, however long that takes."""
    with mock.patch.dict(served._environment().globals, refresh=FOR_EVER_SECONDS):
        yield


def open_and_keep(page: Browser, url: str) -> None:
    """Open a page that stays as it is."""
    with without_refresh():
        page.open(url)


def complaints(page: Browser) -> list[str]:
    """Return what the browser complains of: a style or script that the policy forbids, a file that is not there."""
    logged = [entry["entry"]["text"] for entry in page.told("Log.entryAdded")]
    return logged + [str(entry) for entry in page.told("Runtime.exceptionThrown")]


def test_it_tells_who_has_the_lease(page: Browser, told: str) -> None:
    """The page shows holder, process tree, joined job, queue, tasks, the day and the last 20 events (R10, L5, L9)."""
    open_and_keep(page, told)
    text = page.value("document.body.innerText")
    for words in (
        "primary-dev-sync has the lease",
        "ada@laptop",
        "scheduled",
        "of 6h00m",
        "orchestrator, supervised",
    ):
        assert words in text
    assert page.value("document.title").startswith("primary-dev-sync")
    named = "[...document.querySelectorAll('.card')].map(card => [card.querySelector('h2')?.textContent.split(' ')[0], card.innerText])"
    cards = dict(page.value(named))
    assert [
        name for name in ("maintlock-wrap", "└ sh", "└ maintlock-wrap", "└ index") if name not in cards["Processes"]
    ] == []
    assert "kbSync" in cards["Joined"] and cards["Queue"].index("backup") < cards["Queue"].index("dream")
    assert "4×" in cards["Tasks"] and "overdue" in cards["Tasks"] and "failing" in cards["Tasks"]
    assert page.value("document.querySelectorAll('.events li').length") == 20
    assert page.value("document.querySelectorAll('svg .bar.running').length") == 1
    assert page.value("document.querySelectorAll('svg .bar.timed_out').length") == 1
    assert complaints(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone(page: Browser, told: str, scheme: str) -> None:
    """On a phone nothing is wider than the window and no word is tiny; light and dark have colors of their own."""
    page.show_as(width=PHONE, height=800, scheme=scheme, is_phone=True)
    open_and_keep(page, told)
    assert page.value("window.innerWidth") == PHONE
    assert not is_wider_than_the_window(page)
    sizes = "[...document.querySelectorAll('body *')].filter(e => e.innerText).map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert page.value(f"Math.min(...{sizes})") >= 11
    red, green, blue = page.value(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue > 600) is (scheme == "light")


CONTRASTS = """
(() => {
  const light = color => { const [r, g, b] = color.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = text => text.match(/[0-9.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const words = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) && !e.closest('svg'));
  return words.map(e => { const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 40)]; }).filter(([ratio]) => ratio < 4.5);
})()
"""


DOTS_ASIDE = """
[...document.querySelectorAll('.events li')].filter(li => {
  const [time, dot] = ['time', '.dot'].map(part => li.querySelector(part).getBoundingClientRect());
  const middle = (dot.top + dot.bottom) / 2;
  return middle < time.top || middle > time.bottom;
}).length
"""


def test_a_dot_stands_at_the_first_line(page: Browser, told: str) -> None:
    """On a phone, where an event takes several lines, its dot stands beside the first one."""
    page.show_as(width=PHONE, height=800, is_phone=True)
    open_and_keep(page, told)
    assert page.value("Math.max(...[...document.querySelectorAll('.events .what')].map(e => e.offsetHeight))") > 30
    assert page.value(DOTS_ASIDE) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_words_stand_out(page: Browser, told: str, scheme: str) -> None:
    """All text has a contrast of at least 4.5 to what is behind it (WCAG 2.2, 1.4.3), light and dark."""
    page.show_as(scheme=scheme)
    open_and_keep(page, told)
    assert page.value(CONTRASTS) == []


def test_hostile_names_stay_text(page: Browser, settings: Path, tmp_path: Path) -> None:
    """Whatever names, owners, reasons and commands say, no script runs, nothing is loaded, and the words are there to be read."""
    directory = tmp_path / "state"
    with headless_in(directory) as lock:
        lock.hold("kbSync", "--owner", HOSTILE, "--reason", HOSTILE, script=f"# {HOSTILE}\necho ready; read x")
        fields = dict.fromkeys(("task", "source", "reason_code", "blocked_by", "parent_task"), HOSTILE)
        kinds = ("deferred", "nested_started", "collision", "stale_cleaned", "survivors")
        rows = [events.new(kind, at=time.time(), lease=story.LEASE, detail=HOSTILE, **fields) for kind in kinds]
        rows.append(
            events.new(
                "released", at=time.time(), lease=story.LEASE, lease_id="x", seconds=9000.0, outcome="failed", **fields
            )
        )
        rows.append(events.new("collision", at=time.time(), lease=story.LEASE, detail=HOSTILE, reason_code="inherited"))
        assert pending.append(str(directory), rows)
        with story.served(directory, settings) as url:
            page.show_as(width=PHONE, is_phone=True)
            open_and_keep(page, url)
            assert page.value("document.title") != "pwned"
            assert (
                page.value("document.querySelectorAll('script, img, iframe, object, [onerror], [onload]').length") == 0
            )
            text = page.value("document.body.innerText")
            assert text.count("<script>document.title='pwned'</script>") >= 6 and "{{7*7}}" in text
            assert "\x1b" not in text and "\u202e" not in text
            assert not is_wider_than_the_window(page)
            assert complaints(page) == []


def test_it_needs_no_script_and_refreshes_itself(page: Browser, told: str) -> None:
    """With JavaScript switched off the page is the same, and loads itself anew."""
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    first = page.open(told)
    with without_refresh():
        page.until_loaded(lambda document: document != first)
    assert "has the lease" in page.value("document.body.innerText")


def test_nothing_yet(page: Browser, settings: Path, tmp_path: Path) -> None:
    """Where nothing was ever recorded, the page says so, and has its tasks."""
    with story.served(tmp_path / "state", settings) as url:
        (tmp_path / "state").mkdir(mode=0o700)
        open_and_keep(page, url)
        text = page.value("document.body.innerText")
        assert "Nobody has the lease" in text and "Nobody held it." in text and "never" in text
        assert complaints(page) == []


def test_chromium_itself_prints_it(require: Callable[[str], str], told: str, tmp_path: Path) -> None:
    """`chromium --dump-dom`, as a person would look, prints the page."""
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    argv = [require("chromium"), *options.split(), f"--user-data-dir={tmp_path / 'another'}", "--dump-dom", told]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90)
    assert "primary-dev-sync has the lease" in done.stdout
