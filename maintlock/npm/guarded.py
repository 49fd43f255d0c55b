r"""A guarded npm script and the way back: the script says all that is needed to take the guard off, to the byte.

npm puts arguments after a script's end (`npm run x -- a "b c"` runs `sh -c "<script> a 'b c'"`), so the end of what is
written here has to be a place where they reach the guarded command just so. Three forms, the first that fits:

    maintlock-wrap -t T -- node a.mjs                     one program: the guard is put before it
    maintlock-wrap -t T -- sh -c 'a && b "$@"' sh         anything else to whose end arguments may be put
    maintlock-wrap -t T -- sh -c 'exec sh -c …' '(a; b)'  the rest: `"$@"` is appended only if there are arguments

All of it works on the raw text between the quotation marks in `package.json`: what the author has written stays as it is,
only a `\''` is put behind each `'` (however that is written) where the script goes inside single quotes.
"""

from __future__ import annotations

import json
import re

from maintlock import options
from maintlock.errors import UsageError
from maintlock.model import record
from maintlock.npm import shelltext
from maintlock.npm.package_json import decoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from maintlock.npm.shelltext import Token

WRAP = "maintlock-wrap"
SHIM_PATH = ".maintlock/wrap"
SHIM = f"sh {SHIM_PATH}"

# In raw text `"` is `\"` and `\` is `\\`.
SHELL = r"(?P<shell>[A-Za-z0-9_./+-]+)"
ANY_END = r"exec {shell} -c \"$0${{1+ \\\"\\$@\\\"}}\" {shell} \"$@\""
PREFIX = re.compile(
    rf"(?P<program>{WRAP}|maintlock run|{re.escape(SHIM)})(?P<options>(?: [\w.:/=+,@%-]+)*?) -- ", re.ASCII
)
WRITTEN = re.compile(rf"(?:{WRAP}|{re.escape(SHIM)}) -t [\w.:-]+ -- ", re.ASCII)  # by us, or just as we do
ENDED = re.compile(rf"{SHELL} -c '(?P<body>.*) \\\"\$@\\\"' (?P=shell)", re.DOTALL)
ENCLOSED = re.compile(rf"{SHELL} -c '(?P<program>exec (?P=shell) [^']*)' '(?P<body>.*)'", re.DOTALL)
UNIT = re.compile(r"\\u[0-9A-Fa-f]{4}|\\.|[^\\]", re.DOTALL)
QUOTES = frozenset({"'", "\\u0027"})
BEHIND_QUOTE = [r"\\", "'", "'"]
RUNNERS = frozenset("env npx bunx exec command cross-env time nice ionice pnpm yarn npm dlx x sh bash".split())
ENTRIES = frozenset({"maintlock-entry", "ai-backup", "ai-run-sandman", "ai-sync-github-workflow", "ai-sync-kb"})


@record(frozen=True, kw_only=True)
class Guard:
    """How a script is guarded.

    `kind` is `wrap` or `shim` where `maintlock guard` may have written it, `by hand` and `in part` where it did not. `task`
    is None where the script does not say it, `raw` is what is left without the guard, or `""` where that is not plain.
    """

    kind: str
    task: str | None
    raw: str = ""


def command(guard: Guard | None, script: str) -> str:
    """Return what a script runs, without its guard where that is plainly put before it."""
    return decoded(guard.raw) if guard is not None and guard.raw else script


# Putting it on -------------------------------------------------------------------------------------------------------


def wrapped(raw: str, *, task: str, program: str = WRAP, shell: str = "sh") -> str:
    """Return a raw script under the guard; `shell` is what npm runs scripts with.

    Raises:
        ValueError: It would not run as before, with the reason.
    """
    script = decoded(raw)
    reason = shelltext.obstacle(script)
    if reason:
        raise ValueError(reason)
    for form in _forms(raw, script, shell):
        text = f"{program} -t {task} -- {form}"
        if _restores(text, raw) and _restores(_normal(text), _normal(raw)):
            return text
    raise ValueError("cannot be guarded so that it could be restored to the byte")


def _restores(text: str, raw: str) -> bool:
    there = found(text)
    return there is not None and there.raw == raw


def _normal(raw: str) -> str:
    """Return a raw text as npm itself writes it, which it may do to the whole file at any time (`npm version`)."""
    return json.dumps(decoded(raw), ensure_ascii=False)[1:-1]


def _forms(raw: str, script: str, shell: str) -> Iterator[str]:
    if shelltext.is_plain(script):
        yield raw
    if shelltext.takes_arguments(script):
        yield rf"{shell} -c '{_quoted(raw)} \"$@\"' {shell}"
    yield f"{shell} -c '{ANY_END.format(shell=shell)}' '{_quoted(raw)}'"


def _quoted(raw: str) -> str:
    return "".join(unit + "".join(BEHIND_QUOTE) if unit in QUOTES else unit for unit in UNIT.findall(raw))


# Seeing it, taking it off --------------------------------------------------------------------------------------------


def found(raw: str) -> Guard | None:
    """Return the guard of a raw script, or None."""
    match = PREFIX.match(raw)
    if match is not None and (said := _options(match["options"].split())) is not None:
        inside = _inside(raw[match.end() :])
        if inside is not None:
            is_ours = WRITTEN.fullmatch(match[0]) is not None
            kind = "by hand" if not is_ours else "shim" if match["program"] == SHIM else "wrap"
            return Guard(kind=kind, task=said.task, raw=inside)
    return _found_by_hand(decoded(raw))


def _inside(rest: str) -> str | None:
    """Return what is guarded, out of its form; None if that is not all of the script."""
    if (match := ENCLOSED.fullmatch(rest)) and match["program"] == ANY_END.format(shell=match["shell"]):
        body = _unquoted(match["body"])
        if body is not None:
            return body
    if match := ENDED.fullmatch(rest):
        body = _unquoted(match["body"])
        if body is not None:
            return body
    try:
        pieces = shelltext.tokens(decoded(rest))
    except shelltext.UnfinishedError:
        return None
    return rest if pieces and all(t.kind in {shelltext.WORD, shelltext.REDIRECTION} for t in pieces) else None


def _unquoted(body: str) -> str | None:
    units = UNIT.findall(body)
    kept: list[str] = []
    at = 0
    while at < len(units):
        kept.append(units[at])
        if units[at] in QUOTES:
            if units[at + 1 : at + 4] != BEHIND_QUOTE:
                return None
            at += len(BEHIND_QUOTE)
        at += 1
    return "".join(kept)


def through_shim(raw: str) -> str:
    """Return a raw script that is guarded by `maintlock-wrap`, guarded through the shim instead."""
    match = PREFIX.match(raw)
    assert match is not None
    return SHIM + raw[match.end("program") :]


def _options(words: Sequence[str]) -> options.Options | None:
    try:
        return options.parse([*words, "--", "command"])
    except UsageError:
        return None


def _found_by_hand(script: str) -> Guard | None:
    """Recognise guards in other people's words: `npx maintlock-wrap …`, `X=1 maintlock-wrap …`, `a && maintlock run …`."""
    try:
        commands = list(shelltext.commands(shelltext.tokens(script)))
    except shelltext.UnfinishedError:
        return None
    guards = [guard for words in commands if (guard := _guard_of(words)) is not None]
    if not guards:
        return None
    return guards[0] if len(commands) == 1 else Guard(kind="in part", task=guards[0].task)


def _guard_of(words: Sequence[Token]) -> Guard | None:
    rest = [shelltext.literal(word.text) for word in words]
    while rest:
        name = rest[0].rpartition("/")[2]
        if name == WRAP or rest[0] == SHIM_PATH or (name == "maintlock" and rest[1:2] == ["run"]):
            said = _options(_until_command(rest[2 if name == "maintlock" else 1 :]))
            return Guard(kind="by hand", task=said.task if said is not None else None)
        if name == "maintlock" and rest[1:2] == ["repo-sync"]:  # which guards itself
            return Guard(kind="by hand", task=None)
        if name in ENTRIES:
            said = _options(["-t", *rest[1:2]] if name == "maintlock-entry" else [])
            return Guard(kind="by hand", task=said.task if said is not None else None)
        if not (name in RUNNERS or rest[0].startswith("-") or shelltext.ASSIGNMENT.match(rest[0])):
            return None
        rest = rest[1:]
    return None


def _until_command(words: Sequence[str]) -> Sequence[str]:
    return words[: words.index("--")] if "--" in words else words
