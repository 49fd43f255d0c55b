"""`package.json`: scripts found to the byte, replaced and nothing else, guards put on and taken off without a trace."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock.errors import RefusedError, UnavailableError, UsageError
from maintlock.npm import guarded, package_json, shelltext

WILD = {
    "two blanks": '{\n  "name": "x",\n  "scripts": {\n    "a": "node a.mjs",\n    "b": "x && y"\n  }\n}\n',
    "aligned columns": '{\n    "name"   : "x",\n    "scripts": {\n        "a"      : "node a.mjs",\n        "ai:bb"  : "x"\n    }\n}\n',
    "tabs": '{\n\t"scripts": {\n\t\t"a":\t"node a.mjs"\n\t}\n}\n',
    "CRLF": '{\r\n  "scripts": {\r\n    "a": "node a.mjs",\r\n    "b": "x"\r\n  }\r\n}\r\n',
    "no final newline": '{\n  "scripts": {\n    "a": "node a.mjs"\n  }\n}',
    "byte order mark": '\ufeff{\n  "scripts": {"a": "node a.mjs"}\n}\n',
    "one line": '{"scripts":{"a":"node a.mjs","b":""},"x":[1,2.50,1e3]}',
    "blanks everywhere": ' \n{ \t"scripts" \r: { "a" : "node a.mjs" , "b" :\n"x" } \n, "y" : { } }\n\n ',
    "odd escapes": '{"scripts": {"a": "node .\\/a.mjs \\u0026\\u0026 echo \\u0027\\u00e9\\u0027 \'\\ud83d\\ude00 \\\\\'"}}',
    "escaped name": '{"scripts": {"\\u0061": "node a.mjs"}}',
    "look-alikes": '{"config": {"scripts": {"a": "no"}}, "x": "\\"scripts\\": {\\"a\\": \\"no\\"}", "scripts": {"a": "node a.mjs"},'
    ' "files": [{"scripts": {"a": 1}}]}',
    "other languages": '{"author": "Jürgen 雪 😀", "scripts": {"ü": "x", "a": "node ü.mjs 雪"}}',
}
BROKEN = {
    "empty": (b"", "not JSON: line 1"),
    "an array": (b"[]", "not an object"),
    "cut off": (b'{"scripts": {"a": "x"', "not JSON: line 1"),
    "a comma too many": (b'{\n"scripts": {"a": "x",}}', "not JSON: line 2"),
    "a comment": (b'{"scripts": {} // no\n}', "not JSON: line 1"),
    "two documents": (b"{} {}", "not JSON"),
    "a number that is none": (b'{"a": NaN}', "NaN is no JSON number"),
    "UTF-16": ('{"scripts": {}}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": (b'{"author": "J\xfcrgen"}', "not UTF-8 at byte 13"),
    "deep": (b"[" * 100000, "nested too deeply"),
    "scripts twice": (b'{"scripts": {}, "scripts": {}}', '"scripts" appears twice'),
    "scripts of another kind": (b'{"scripts": ["a"]}', '"scripts" is not an object'),
}
STRANGER = 12345


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Give `put(text)`: the path of a `package.json` with that text."""

    def written(text: str | bytes) -> str:
        path = tmp_path / "package.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", WILD.values(), ids=WILD)
def test_scripts_are_found_where_they_stand(put: Callable[[str | bytes], str], text: str) -> None:
    """Each script is found in any layout, with what npm runs and the very bytes it is written with."""
    package = package_json.read(put(text))

    assert {name: script.text for name, script in package.scripts.items()} == json.loads(text.removeprefix("\ufeff"))[
        "scripts"
    ]
    for script in package.scripts.values():
        assert text[script.start - 1 : script.end + 1] == f'"{script.raw}"'


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(put: Callable[[str | bytes], str], content: bytes, said: str) -> None:
    """What is no `package.json` is a usage error that says where it goes wrong."""
    path = put(content)
    with pytest.raises(UsageError, match="nothing was changed") as caught:
        package_json.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """A missing file, a symlink to nothing, a directory and a FIFO are told apart."""
    (tmp_path / "link").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, said in {
        "none": "no such file",
        "link": "a symlink to",
        "fifo": "not a regular",
        ".": "regular file|cannot",
    }.items():
        with pytest.raises(UsageError, match=said):
            package_json.read(str(tmp_path / name))


def test_scripts_that_cannot_be_edited(put: Callable[[str | bytes], str]) -> None:
    """A script that is not a string, or appears twice, is named as such."""
    package = package_json.read(put('{"scripts": {"a": 1, "b": "x", "b": "y", "c": {"d": "e"}, "f": "g"}}'))
    assert package.odd == {"a": "is not a string", "b": "appears twice", "c": "is not a string"}
    assert package_json.read(put("{}")).scripts == {}


def test_the_nearest_file_is_taken(tmp_path: Path) -> None:
    """Without a name it is the file that npm would take; with one, that or the one in that directory."""
    (tmp_path / "package.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert package_json.find(None, str(tmp_path / "a" / "b")) == str(tmp_path / "package.json")
    assert package_json.find("x.json", str(tmp_path)) == str(tmp_path / "x.json")
    assert package_json.find("..", str(tmp_path / "a")) == str(tmp_path / "package.json")


def test_workspaces(tmp_path: Path) -> None:
    """Workspaces are found by their patterns, in either spelling, without what is excluded or installed."""
    for name in ("packages/a", "packages/b", "packages/b/node_modules/c", "tools", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "package.json").write_text("{}", encoding="utf-8")
    path = tmp_path / "package.json"
    for listed in (["packages/**", "tools", "!packages/b", 7], {"packages": ["packages/a", "./tools"]}):
        path.write_text(json.dumps({"workspaces": listed}), encoding="utf-8")
        found = package_json.workspaces(package_json.read(str(path)))
        assert [os.path.relpath(one, tmp_path) for one in found] == ["packages/a/package.json", "tools/package.json"]


# Editing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", WILD.values(), ids=WILD)
def test_an_edit_changes_nothing_else(put: Callable[[str | bytes], str], text: str) -> None:
    """A replaced script is all that differs, and putting the old one back gives the old bytes."""
    path = put(text)
    package = package_json.read(path)
    script = package.scripts["a"]

    package_json.write(package, package_json.edited(package, {"a": "new \\u0027"}))
    changed = package_json.read(path)

    assert Path(path).read_bytes() == (text[: script.start] + "new \\u0027" + text[script.end :]).encode()
    package_json.write(changed, package_json.edited(changed, {"a": script.raw}))
    assert Path(path).read_bytes() == text.encode()


def test_an_edit_that_would_break_out_is_ours_to_notice(put: Callable[[str | bytes], str]) -> None:
    """A text that would end the string and change the document is never written."""
    package = package_json.read(put(WILD["tabs"]))
    with pytest.raises((AssertionError, ValueError)):
        package_json.edited(package, {"a": '", "b": "c'})


def test_the_file_keeps_its_mode_and_leaves_nothing_behind(put: Callable[[str | bytes], str], tmp_path: Path) -> None:
    """The new file has the mode of the old one, also after a crash that left a temporary file, which goes."""
    path = put(WILD["tabs"])
    os.chmod(path, 0o664)
    (tmp_path / ".package.json.maintlock-new").write_text("left", encoding="utf-8")

    package = package_json.read(path)
    package_json.write(package, package_json.edited(package, {"a": "b"}))

    assert stat.S_IMODE(os.stat(path).st_mode) == 0o664
    assert os.listdir(tmp_path) == ["package.json"]


def test_a_symlink_stays_one(put: Callable[[str | bytes], str], tmp_path: Path) -> None:
    """Where `package.json` is a symlink, its target is replaced, and the link stays."""
    os.rename(put(WILD["tabs"]), tmp_path / "real.json")
    (tmp_path / "package.json").symlink_to("real.json")

    package = package_json.read(str(tmp_path / "package.json"))
    package_json.write(package, package_json.edited(package, {"a": "b"}))

    assert os.readlink(tmp_path / "package.json") == "real.json"
    assert json.loads((tmp_path / "real.json").read_bytes())["scripts"] == {"a": "b"}


@pytest.mark.parametrize("how", ["in place", "replaced", "same text", "gone"])
def test_a_file_changed_meanwhile_is_left(put: Callable[[str | bytes], str], tmp_path: Path, how: str) -> None:
    """What somebody has written since the file was read is not overwritten, not even the same text again."""
    path = put(WILD["tabs"])
    package = package_json.read(path)
    if how == "in place":
        put(WILD["CRLF"])
    elif how == "gone":
        os.unlink(path)
    else:
        (tmp_path / "new").write_text(WILD["tabs"] + "\n" * (how == "replaced"), encoding="utf-8")
        os.rename(tmp_path / "new", path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    with pytest.raises((UnavailableError, UsageError), match="changed meanwhile|no such file"):
        package_json.write(package, package_json.edited(package, {"a": "b"}))

    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_files_that_are_not_ours_to_replace(put: Callable[[str | bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only file, one with other names and one of somebody else are refused, with what would help."""
    path = put(WILD["tabs"])

    def said() -> str:
        with pytest.raises(RefusedError, match="nothing was changed") as caught:
            package_json.write(package_json.read(path), "{}")
        return str(caught.value)

    os.chmod(path, 0o444)
    assert "chmod u+w" in said()
    os.chmod(path, 0o644)
    os.link(path, path + ".2")
    assert "hard links" in said()
    os.unlink(path + ".2")
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert "not to you" in said()
    assert Path(path).read_text(encoding="utf-8") == WILD["tabs"]


def test_a_full_disk_leaves_the_old_file(
    put: Callable[[str | bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the new file cannot be written out, the old one stays whole and nothing is left beside it."""
    package = package_json.read(put(WILD["tabs"]))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        package_json.write(package, "{}")
    assert os.listdir(tmp_path) == ["package.json"]
    assert (tmp_path / "package.json").read_text(encoding="utf-8") == WILD["tabs"]


# Guards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("node a.mjs", "maintlock-wrap -t T -- node a.mjs"),
        ("node 'a b' $X *.js", "maintlock-wrap -t T -- node 'a b' $X *.js"),
        ("a && b", "maintlock-wrap -t T -- sh -c 'a && b \"$@\"' sh"),
        ("X=1 node a", "maintlock-wrap -t T -- sh -c 'X=1 node a \"$@\"' sh"),
        ("a > log", "maintlock-wrap -t T -- sh -c 'a > log \"$@\"' sh"),
        ("node $(cat f)", "maintlock-wrap -t T -- sh -c 'node $(cat f) \"$@\"' sh"),
        ("cd x", "maintlock-wrap -t T -- sh -c 'cd x \"$@\"' sh"),
        ("a && b 'c'", "maintlock-wrap -t T -- sh -c 'a && b '\\''c'\\'' \"$@\"' sh"),
        ("(a; b)", 'maintlock-wrap -t T -- sh -c \'exec sh -c "$0${1+ \\"\\$@\\"}" sh "$@"\' \'(a; b)\''),
        ("a;", 'maintlock-wrap -t T -- sh -c \'exec sh -c "$0${1+ \\"\\$@\\"}" sh "$@"\' \'a;\''),
    ],
)
def test_forms(script: str, expected: str) -> None:
    """A guarded script is as plain as its end allows."""
    assert package_json.decoded(guarded.wrapped(json.dumps(script)[1:-1], task="T")) == expected


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo $1", r"uses $1,"),
        ('node a "$@"', "uses $@,"),
        ("echo ${2:-x}", "uses ${2,"),
        ("f() { echo $1; }; f; echo $#", "uses $#,"),
        ("shift; a", "changes its arguments (shift)"),
        ("set -- a; b", "changes its arguments (set)"),
        ("echo 'a", "does not end where it should"),
        ('a && "b', "does not end where it should"),
        ("echo $(a", "does not end where it should"),
        ("a >", "ends inside a redirection"),
        ("a\0b", "has a NUL in it"),
    ],
)
def test_scripts_that_would_change_their_meaning_are_refused(script: str, reason: str) -> None:
    """Where arguments would mean something else under the guard than npm makes of them, it is not put on."""
    with pytest.raises(ValueError, match=".") as caught:
        guarded.wrapped(json.dumps(script)[1:-1], task="T")
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("script", "kind", "task"),
    [
        ("maintlock-wrap -t a -- node x", "wrap", "a"),
        ("maintlock-wrap --task=a -w 10m -E 75 -- node x", "by hand", "a"),
        ("maintlock-wrap -t a -w 10m -- sh -c 'x && y \"$@\"' sh", "by hand", "a"),
        ("maintlock-wrap --task=a -- node x", "by hand", "a"),
        ("maintlock run -t a -- node x", "by hand", "a"),
        ("maintlock-wrap -- node x", "by hand", None),
        ("sh .maintlock/wrap -t a --owner me -- node x", "by hand", "a"),
        ("sh .maintlock/wrap -t a -- node x", "shim", "a"),
        ("npx --no-install maintlock-wrap -t a -- node x", "by hand", "a"),
        ("X=1 maintlock-wrap -ta node x", "by hand", "a"),
        ("cross-env X=1 maintlock-wrap -t a -- node x", "by hand", "a"),
        ("maintlock-wrap --reason 'by hand' -t a -- node x", "by hand", "a"),
        ("./node_modules/.bin/maintlock-wrap -t a -- node x > log", "by hand", "a"),
        ("bin/ai-backup", "by hand", None),
        ("maintlock repo-sync --json", "by hand", None),
        ("git gc && maintlock repo-sync", "in part", None),
        ("maintlock-entry dream ai:dream dream.mjs", "by hand", "dream"),
        ("maintlock-wrap -t a -- node x && node y", "in part", "a"),
        ("node x; maintlock-wrap -t a -- node y", "in part", "a"),
    ],
)
def test_guards_are_recognised(script: str, kind: str, task: str | None) -> None:
    """A guard is seen however it is written, and so is that it covers only a part."""
    found = guarded.found(json.dumps(script)[1:-1])
    assert found is not None
    assert (found.kind, found.task) == (kind, task)


@pytest.mark.parametrize(
    "script", ["node maintlock-wrap.mjs", "echo maintlock-wrap -t a -- b", "maintlock status", "a 'b", ""]
)
def test_what_is_no_guard(script: str) -> None:
    """A script that only speaks of the wrapper is not guarded."""
    assert guarded.found(json.dumps(script)[1:-1]) is None


SHELLLIKE = st.text(alphabet="ab '\"\\$&|;<>(){}#\n\t=-@1~*!`é/", max_size=30)
TAKEN = st.sampled_from(
    ["maintlock-wrap -t T -- a", "sh -c 'a \"$@\"' sh", "sh -c 'x' 'y'", "a && b", "f() { a $1; }; f"]
)


@given(SHELLLIKE | TAKEN, st.sampled_from([guarded.WRAP, guarded.SHIM]), st.integers(0, 7))
def test_guards_come_off_to_the_byte(script: str, program: str, spelling: int) -> None:
    """Whatever can be guarded is recognised, and comes off as it was written, once and twice, also after npm has rewritten
    the file in its own spelling.
    """
    raw = json.dumps(script, ensure_ascii=bool(spelling & 1))[1:-1]
    raw = raw.replace("'", "\\u0027") if spelling & 2 else raw
    raw = raw.replace("/", "\\/") if spelling & 4 else raw
    try:
        once = guarded.wrapped(raw, task="T", program=program)
    except ValueError:
        return
    twice = guarded.wrapped(once, task="U")
    for text, inside, task in ((once, raw, "T"), (twice, once, "U")):
        found = guarded.found(text)
        assert found is not None
        assert (found.raw, found.task) == (inside, task)
        normal = guarded.found(json.dumps(package_json.decoded(text))[1:-1])
        assert normal is not None
        assert package_json.decoded(normal.raw) == package_json.decoded(inside)
    assert guarded.through_shim(once) == guarded.wrapped(raw, task="T", program=guarded.SHIM)


@given(SHELLLIKE)
def test_reading_shell_text_never_fails(script: str) -> None:
    """Any text is read to its end, or said to be unfinished; what is read is all there."""
    shelltext.obstacle(script)
    try:
        found = shelltext.tokens(script)
    except shelltext.UnfinishedError:
        return
    assert all(script[token.at : token.at + len(token.text)] == token.text for token in found)
    between = "".join(script[a.at + len(a.text) : b.at] for a, b in pairwise(found))
    assert not between.replace("\\\n", "").strip(" \t")
