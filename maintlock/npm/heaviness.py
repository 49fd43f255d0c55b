"""Which npm scripts look as if they were heavy maintenance: a guess from names, and knowledge from the configuration."""

from __future__ import annotations

import re

from maintlock.npm import shelltext
from maintlock.settings import task_for_npm_script

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from maintlock.config import Config

# Whole words, and two of them beside each other; then beginnings of words.
HEAVY = (
    *("sync ", "kb ", "llm ", "etl ", "rag ", "dump ", "train ", "dream ", "golden path "),
    *(
        "backup restor index reindex embed summar sandman finetun migrat vacuum compact export ingest crawl scrap chroma "
        "sqlite knowledge backfill vector rebuild synchron archiv"
    ).split(),
)
PROGRAMS = frozenset(
    "pg_dump pg_dumpall pg_restore mysqldump mongodump mongorestore sqlite3 restic borg rsync ollama whisper".split()
)
# As the first or the last word of a name: `sync:watch` and `dev:sync` are not heavy, `primary-dev-sync` is.
LIGHT = frozenset(
    "test tests spec lint check typecheck types format fmt watch serve server start stop dev daemon status help version clean "
    "preview storybook orchestrator orchestrate mcp".split()
)
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
FILE = re.compile(r"[\w./-]+\.(?:[cm]?[jt]s|py|sh)")
INTERPRETERS = frozenset("node tsx ts-node bun deno python python3 sh bash".split())
NEVER_ENDS = re.compile(r"\bchroma run\b|\bollama serve\b|\s--watch\b|\bnodemon\b|\bpm2\b")
RUN = re.compile(r"\b(?:npm|pnpm|yarn|bun)(?: -\S+)* (?:run|run-script)(?: -\S+)* \S+")


def why(name: str, script: str, settings: Config, others: Collection[str] = ()) -> str:
    """Return why a script looks heavy, or `""`; `others` are the scripts beside it, for `prebackup` is no backup."""
    task = task_for_npm_script(settings, name)
    if task is not None:
        return f"is task {task.name} in the configuration" if task.heavy else ""
    runs = list(_programs(script))
    for task in settings.tasks.values():
        if task.heavy and task.match is not None and task.match in runs:
            return f"runs {task.match}, as task {task.name} does"
    words = [] if is_around(name, others) else _words(name)
    if _is_light(words) or NEVER_ENDS.search(script):
        return ""
    if hit := _heavy(words):
        return f"named {hit}"
    for program in runs:
        if program in PROGRAMS:
            return f"runs {program}"
        words = _words(program.partition(".")[0])
        if not _is_light(words) and (hit := _heavy(words)):
            return f"runs {program}"
    return ""


def is_around(name: str, others: Collection[str]) -> bool:
    """Tell whether npm runs a script before or after another one."""
    return any(name.startswith(prefix) and name.removeprefix(prefix) in others for prefix in ("pre", "post"))


def match_name(script: str) -> str | None:
    """Return by which base name a script's process would be recognised: that of the one file it runs, or None."""
    files = [name for name in _programs(script) if FILE.fullmatch(name)]
    return files[0] if len(files) == 1 else None


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORDS.findall(name)]


def _is_light(words: list[str]) -> bool:
    return not LIGHT.isdisjoint(words[:1] + words[-1:])


def _heavy(words: list[str]) -> str:
    for at, word in enumerate(words):
        if f"{' '.join(words[at:])} ".startswith(HEAVY):
            return word
    return ""


def _programs(script: str) -> Iterator[str]:
    """Give the base names of what a script runs: its programs, and the files that are their first arguments."""
    try:
        found = shelltext.tokens(RUN.sub("", script))
    except shelltext.UnfinishedError:
        return
    for words in shelltext.commands(found):
        texts = [shelltext.literal(word.text) for word in words]
        yield from (text.rpartition("/")[2] for text in texts if not text.startswith("-") and _is_program(text, texts))


def _is_program(text: str, texts: list[str]) -> bool:
    is_first_argument = texts[0] in INTERPRETERS and texts[1:2] == [text]
    return text == texts[0] or is_first_argument or FILE.fullmatch(text) is not None
