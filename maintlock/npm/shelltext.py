"""What can be known of a shell script without running it: its words, its commands, and where arguments could be put.

Reads the POSIX shell language as far as these questions need it. What it does not follow (`case` inside `$(…)`, say) makes
it say "not simple", which costs a plainer form and nothing else.
"""

from __future__ import annotations

import re
import shlex

from maintlock.model import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WORD, OPERATOR, REDIRECTION, NEWLINE, COMMENT = "word", "operator", "redirection", "newline", "comment"
BREAKS = " \t\n;&|<>()"
OPERATORS = re.compile(r"(?P<redirection>\d*(?:<<<|<<-|<<|<&|<>|>>|>&|>\||<|>))|(?P<operator>&&|\|\||;;|[;&|()])")
RESERVED = frozenset(
    "if then else elif fi do done case esac while until for select function in time { } ! [[ ]]".split()
)
BEFORE_COMMAND = frozenset("if then else elif do while until time ! {".split())
BUILTINS = frozenset(
    ". : [ alias bg bind break builtin caller cd chdir command compgen complete continue declare dirs disown echo enable "
    "eval exec exit export false fc fg getopts hash help history jobs kill let local logout mapfile popd printf pushd pwd "
    "read readarray readonly return set shift shopt source suspend test times trap true type typeset ulimit umask unalias "
    "unset wait".split()
)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_./@][A-Za-z0-9_./@+-]*")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
POSITIONAL = re.compile(r"\$(?:[1-9@*#]|\{[#!]?[1-9@*]\}?|\{#\})")
SUBSTITUTION = re.compile(r"\$\(|`")


class UnfinishedError(ValueError):
    """A quotation or an expansion is opened and not closed."""


@record(frozen=True, kw_only=True)
class Token:
    """One piece of a script, as written; `at` is where it begins."""

    kind: str
    text: str
    at: int


def tokens(script: str) -> list[Token]:
    """Return a script's pieces.

    Raises:
        UnfinishedError: It ends inside a quotation or an expansion.
    """
    return _Reader(script).tokens()


class _Reader:
    """One script while it is read, and where in it the shell would put the script's own arguments."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.positional: list[tuple[int, str]] = []

    def tokens(self) -> list[Token]:
        found: list[Token] = []
        at = 0
        while at < len(self.script):
            kind, end = self._next(at)
            if kind:
                found.append(Token(kind=kind, text=self.script[at:end], at=at))
            at = end
        return found

    def _next(self, at: int) -> tuple[str, int]:
        script = self.script
        if script[at] in " \t":
            return "", at + 1
        if script.startswith("\\\n", at):
            return "", at + 2
        if script[at] == "\n":
            return NEWLINE, at + 1
        if script[at] == "#":
            end = script.find("\n", at)
            return COMMENT, len(script) if end < 0 else end
        if match := OPERATORS.match(script, at):
            return match.lastgroup or "", match.end()
        return WORD, self._word_end(at)

    def _word_end(self, at: int) -> int:
        while at < len(self.script) and self.script[at] not in BREAKS:
            at = self._piece_end(at)
        return at

    def _piece_end(self, at: int) -> int:
        """Return where the character, quotation or expansion that begins at `at` ends."""
        character = self.script[at]
        if character == "\\":
            return min(at + 2, len(self.script))
        if character == "'":
            return self._quotation_end(at + 1)
        if character in '"`':
            return self._closed_by(character, at + 1)
        if match := POSITIONAL.match(self.script, at):
            self.positional.append((at, match[0]))
        if self.script.startswith("$(", at):
            return self._closed_by(")", at + 2)
        if self.script.startswith("${", at):
            return self._closed_by("}", at + 2)
        return at + 1

    def _quotation_end(self, at: int) -> int:
        end = self.script.find("'", at)
        if end < 0:
            raise UnfinishedError("a ' is not closed")
        return end + 1

    def _closed_by(self, closing: str, at: int) -> int:
        """Return the end of what `closing` closes: `'` means nothing inside double quotes, parentheses may nest."""
        while at < len(self.script):
            character = self.script[at]
            if character == closing:
                return at + 1
            if character == "(" and closing == ")":
                at = self._closed_by(")", at + 1)
            elif character == "'" and closing in '"}`':
                at += 1
            else:
                at = self._piece_end(at)
        raise UnfinishedError(f"a {closing} is missing")


# Commands ------------------------------------------------------------------------------------------------------------


def commands(found: list[Token]) -> Iterator[list[Token]]:
    """Give the words of each simple command, without reserved words and redirections."""
    words: list[Token] = []
    is_target = False
    for token in [*found, Token(kind=OPERATOR, text=";", at=-1)]:
        if token.kind == WORD and not is_target:
            if words or token.text not in RESERVED:
                words.append(token)
            elif token.text in {"for", "case", "select", "function", "in"}:
                words.append(token)  # what follows is no command
        elif token.kind in {OPERATOR, NEWLINE} and words:
            yield words
            words = []
        is_target = token.kind == REDIRECTION


def literal(word: str) -> str:
    """Return a word without its quotes; expansions stay as they are written."""
    try:
        parts = shlex.split(word, posix=True)
    except ValueError:
        return word
    return parts[0] if len(parts) == 1 else word


def is_plain(script: str) -> bool:
    """Tell whether a script is one program with its arguments, which needs a shell for nothing but to split them.

    Then a wrapper may be put before it as it is. Not so before a builtin, an assignment, a redirection (which would apply to
    the wrapper), or a substitution (which would run before the wrapper).
    """
    found = tokens(script)
    if not found or any(token.kind != WORD for token in found) or SUBSTITUTION.search(script):
        return False
    first = found[0].text
    return PLAIN_NAME.fullmatch(first) is not None and first not in BUILTINS | RESERVED


def takes_arguments(script: str) -> bool:
    """Tell whether ` "$@"` may be put after a script's end: with and without arguments it is what npm's appending is."""
    found = tokens(script)
    if not found or found[-1].kind != WORD or _ends_in_backslash(script):
        return False
    if any(token.kind in {NEWLINE, COMMENT} or "<<" in token.text for token in found):
        return False
    return not any(token.text in RESERVED for token in _at_command_position(found))


def _at_command_position(found: list[Token]) -> Iterator[Token]:
    is_command, is_target = True, False
    for token in found:
        if token.kind == WORD and not is_target:
            if is_command:
                yield token
            is_command = is_command and (token.text in BEFORE_COMMAND or ASSIGNMENT.match(token.text) is not None)
        elif token.kind in {OPERATOR, NEWLINE}:
            is_command = True
        is_target = token.kind == REDIRECTION


def _ends_in_backslash(script: str) -> bool:
    return (len(script) - len(script.rstrip("\\"))) % 2 == 1


# What cannot be carried over -----------------------------------------------------------------------------------------


def obstacle(script: str) -> str:
    """Return why a script would mean something else inside `sh -c '…'` with arguments, or `""`."""
    reader = _Reader(script)
    try:
        found = reader.tokens()
    except UnfinishedError as error:
        return f"does not end where it should ({error}), and arguments would end up inside that"
    if script[:1] in {"-", "+"}:
        return "begins with what a shell takes for its own options"
    if "\0" in script:
        return "has a NUL in it"
    if found and found[-1].kind == REDIRECTION:
        return "ends inside a redirection"
    spans = list(_functions(found))
    for at, parameter in reader.positional:
        if not any(start < at < end for start, end in spans):
            return f"uses {parameter}, which npm leaves empty"
    for words in commands(found):
        inside = any(start < words[0].at < end for start, end in spans)
        if not inside and _sets_arguments(words):
            return f"changes its arguments ({words[0].text})"
    return ""


def _sets_arguments(words: list[Token]) -> bool:
    if words[0].text == "set":
        return any(word.text == "--" or word.text[0] not in "-+" for word in words[1:2])
    return words[0].text == "shift"


def _functions(found: list[Token]) -> Iterator[tuple[int, int]]:
    """Give where the body of each `name() {` begins and ends: arguments inside are the function's own."""
    start, depth = -1, 0
    heads = {token.at for token in _at_command_position(found)}
    for before, token in zip([None, *found], found, strict=False):
        if token.text == "{" and token.at in heads:
            if start < 0 and before is not None and before.text == ")":
                start = token.at
            depth += start >= 0
        elif token.text == "}" and token.at in heads and start >= 0:
            depth -= 1
            if depth == 0:
                yield start, token.at
                start = -1
