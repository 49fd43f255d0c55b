"""What may be shown."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import redact
from maintlock.redact import MASK, printable, storable, without_secrets

SECRET = "s3cr3t"
WORDS = st.text(alphabet="abcdefgh/._", min_size=1, max_size=8)
KEYS = st.sampled_from(
    [
        "TOKEN",
        "GITHUB_TOKEN",
        "db_password",
        "API-KEY",
        "OPENAI_API_KEY",
        "client_secret",
        "MYSQL_PWD",
        "DB_PASS",
        "SSH_KEY",
        "SSH_KEY_1",
        "ENCRYPTION_KEY_BASE",
        "API_KEYS",
        "PASSCODE",
        "JWT",
        "AWS_CREDS",
        "GH_PAT",
    ]
)
OPTIONS = st.sampled_from(
    [
        "--token",
        "--password",
        "--api-key",
        "--client-secret",
        "--auth-token",
        "--passwd",
        "--pw",
        "--pin",
        "--otp",
        "--jwt",
    ]
)
VALUES = st.text(alphabet="abc 123;'\"/:@=$\\-", max_size=12).map(lambda s: SECRET + s)
HEADERS = st.sampled_from(["Authorization: Bearer {}", "X-Api-Key: {}", "Cookie: session={}", "authorization:{}"])
# Each of these is what stands in an argument list, with a secret of any letters in it.
HIDDEN = st.one_of(
    st.tuples(OPTIONS, VALUES).map(lambda t: [f"{t[0]}={t[1]}"]),
    st.tuples(OPTIONS, VALUES).map(list),
    st.tuples(KEYS, VALUES).map(lambda t: [f"{t[0]}={t[1]}"]),
    st.tuples(KEYS, VALUES).map(lambda t: ["-e", f"{t[0]}={t[1]}"]),
    st.tuples(HEADERS, VALUES).map(lambda t: ["-H", t[0].format(t[1])]),
    st.tuples(HEADERS, VALUES).map(lambda t: [f"--header={t[0].format(t[1])}"]),
    st.tuples(KEYS, st.integers(0, 2)).map(
        lambda t: ["-d", f'{{"a":1,{" " * t[1]}"{t[0]}":{" " * t[1]}"{SECRET}", "b":2}}']
    ),
    st.just(["-u", f"bob:{SECRET}"]),
    st.just([f"postgres://user:12/{SECRET}@host/db"]),
    st.just([f"postgres://user:{SECRET}@host:5432/db"]),
    st.just([f"https://{SECRET}@host/x.git"]),
    st.just([f"a=https://u:p@h,https://u:{SECRET}/x@h2/path"]),
)
# Inside a script a shell will take the quotes away.
SCRIPTED = st.one_of(
    st.tuples(OPTIONS, VALUES).map(lambda t: f"{t[0]}={shlex.quote(t[1])}"),
    st.tuples(OPTIONS, VALUES).map(lambda t: f"{t[0]} {shlex.quote(t[1])}"),
    st.tuples(KEYS, VALUES).map(lambda t: f"{t[0]}={shlex.quote(t[1])}"),
    st.tuples(HEADERS, VALUES).map(lambda t: f"-H {shlex.quote(t[0].format(t[1]))}"),
    st.just(f"https://user:{SECRET}@host/x"),
    st.just(f'curl -d "{{\\"password\\":\\"{SECRET}\\"}}" x'),
    KEYS.map(lambda key: f"{key}=$(printf {SECRET}) x"),
    KEYS.map(lambda key: f"{key}=`printf {SECRET}` x"),
)
BETWEEN = st.sampled_from([" ", "  ", "\n", "\t", " && ", "; ", " \\\n  ", " | "])


@given(st.lists(WORDS), HIDDEN, st.lists(WORDS))
def test_no_secret_survives(before: list[str], hidden: list[str], after: list[str]) -> None:
    """A secret in any of the usual forms never reaches a record, whatever stands around it."""
    shown = without_secrets([*before, *hidden, *after])
    assert SECRET not in " ".join(shown)
    assert MASK in " ".join(shown)


@given(st.lists(WORDS), SCRIPTED, st.lists(WORDS), BETWEEN)
def test_no_secret_survives_in_a_script(before: list[str], hidden: str, after: list[str], between: str) -> None:
    """A secret inside a script that is handed to a shell is masked too."""
    shown = without_secrets(["sh", "-c", between.join(["run", *before, hidden, *after])])
    assert SECRET not in " ".join(shown)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["npm", "run", "ai:sync-kb"], ["npm", "run", "ai:sync-kb"]),
        (["npm", "run", "auth:login"], ["npm", "run", "auth:login"]),
        (["node", "a b", "x=1", "--port=80"], ["node", "a b", "x=1", "--port=80"]),
        (["git", "log", "--author=me"], ["git", "log", "--author=me"]),
        (["curl", "https://host:8080/p@v"], ["curl", "https://host:8080/p@v"]),
        (["curl", "https://host/?mail=a@b"], ["curl", "https://host/?mail=a@b"]),
        (["sh", "-c", "a\n  b && c"], ["sh", "-c", "a\n  b && c"]),
        (["x", "--token", "abc", "y"], ["x", "--token", MASK, "y"]),
        (["x", "--token", "--verbose", "y"], ["x", "--token", "--verbose", "y"]),
        (["sh", "-c", "TOKEN=a node x.js"], ["sh", "-c", f"TOKEN={MASK} node x.js"]),
        (["sh", "-c", "TOKEN=\"a' b' c\" node x"], ["sh", "-c", f"TOKEN={MASK} node x"]),
        (["curl", "https://u:p@host/x"], ["curl", f"https://u:{MASK}@host/x"]),
        (["curl", "https://host/?token=abc"], ["curl", f"https://host/?token={MASK}"]),
    ],
)
def test_what_is_shown(argv: list[str], shown: list[str]) -> None:
    """What is no secret is shown as it is, and around a secret the rest."""
    assert without_secrets(argv) == shown


def test_long_commands_are_cut() -> None:
    """A record bears so many arguments, and so many letters of each; what is left out is said."""
    shown = without_secrets(["x" * 10_000] * 100)
    assert len(shown) == redact.MAX_ARGUMENTS + 1
    assert shown[-1] == "… 36 more"
    assert max(map(len, shown)) == redact.MAX_ARGUMENT


def test_a_command_is_unicode() -> None:
    """Bytes that are no UTF-8 are written as escapes: not every reader of JSON takes half of a surrogate pair."""
    assert redact.without_secrets(["cat", "caf\udce9", "--token=\udcff"]) == ["cat", r"caf\udce9", "--token=***"]


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    """No control character, line end, escape or lone surrogate of somebody else's is printed."""
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")


@given(st.text())
def test_printable_text_is_shown_as_it_is(text: str) -> None:
    """What can be printed is not changed, only cut."""
    if text.isprintable():
        assert printable(text, 10**6) == text
        assert printable(text, 3) == (text if len(text) <= 3 else f"{text[:3]}…")


def test_control_characters_are_shown() -> None:
    """What would steer a terminal is shown as an escape."""
    assert printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"


@given(st.text())
def test_stored_text_is_unicode(text: str) -> None:
    """Any owner or reason can be stored, however it was encoded on the command line."""
    storable(text).encode("utf-8")
    assert len(storable(text, 5)) <= 5 * 10
