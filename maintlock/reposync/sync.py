"""One repository: what is found, what follows from it, and the steps in their order."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from maintlock.errors import MaintlockError
from maintlock.model import record
from maintlock.reposync.git import GitError, meant
from maintlock.reposync.git import shown as shown_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from maintlock.reposync.git import Answer, Git

PULLED, UP_TO_DATE, FAILED = "pulled", "up-to-date", "failed"
DIVERGED, DIRTY, NO_REPOSITORY, NO_UPSTREAM = "local-divergence", "dirty", "not-a-repository", "no-upstream"
SHORT = 7
UNFINISHED = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "BISECT_LOG": "a bisection",
}


@record(frozen=True, kw_only=True)
class Result:
    """How it went with one root: `before` and `after` are commits, or `""`; `detail` is for people."""

    root: str
    outcome: str
    before: str = ""
    after: str = ""
    detail: str = ""


@record(frozen=True, kw_only=True)
class Found:
    """What decides once the fetch is through; the tree is looked at only where there is something to pull."""

    ahead: int
    behind: int
    changed: int = 0
    unfinished: str = ""


class Skip(Exception):  # noqa: N818  an answer, not an error
    """The repository is left as it is; the outcome says why."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail


def decided(found: Found) -> tuple[str, str]:
    """Return outcome and detail; `pulled` where nothing is in the way of a fast-forward.

    What is up to date is so whatever its tree looks like, and divergence is told before a dirty tree: it is there to stay.
    """
    if not found.behind:
        return UP_TO_DATE, f"{counted(found.ahead, 'commit')} ahead" if found.ahead else ""
    if found.ahead:
        return DIVERGED, f"{found.ahead} ahead, {found.behind} behind"
    if found.unfinished:
        return DIRTY, f"{found.unfinished} is in progress"
    if found.changed:
        return DIRTY, f"{counted(found.changed, 'file')} changed"
    return PULLED, counted(found.behind, "commit")


def counted(number: int, noun: str) -> str:
    """Return `1 commit` or `2 commits`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def line_of(result: Result, root: str) -> str:
    """Return what people are told of a root that is called `root`."""
    if result.outcome == FAILED:
        return f"{root}: failed: {result.detail}"
    words = result.outcome if result.outcome in {PULLED, UP_TO_DATE} else f"skipped, {result.outcome}"
    if result.outcome == PULLED:
        words += " " + "..".join(commit[:SHORT] for commit in (result.before, result.after) if commit)
    return f"{root}: {words}{f' ({result.detail})' if result.detail else ''}"


class RootSync:
    """One pass over one root. `owe` writes down what a pull will owe, and returns how to take that back."""

    def __init__(self, git: Git, owe: Callable[[str, str], Callable[[], None]]) -> None:
        self.git = git
        self.owe = owe
        self.before = self.after = ""

    def run(self) -> Result:
        """Pull if that can be done by fast-forward; a failure is a result too.

        Raises:
            Interrupted: A signal that ends us has come.
        """
        try:
            outcome, detail = self._pulled()
        except Skip as skip:
            outcome, detail = skip.outcome, skip.detail
        except GitError as error:
            outcome, detail = FAILED, str(error)
        return Result(root=self.git.root, outcome=outcome, before=self.before, after=self.after, detail=detail)

    def _pulled(self) -> tuple[str, str]:
        git_directory = self._read_place()
        upstream = self._read_upstream(git_directory)
        self.before = self.after = self._read_commit("HEAD")
        self.git.silence_ssh()
        self.git.output_of("fetch", "--quiet", "--no-progress")
        target = self._read_commit("@{upstream}")
        if not target:
            raise Skip(NO_UPSTREAM, f"nothing is fetched of {upstream}")
        outcome, detail = decided(self._read_found(git_directory, target))
        if outcome == PULLED:
            self._merge(target)
        return outcome, detail

    # What is found

    def _read_place(self) -> str:
        """Return the git directory of a root that is the top of a work tree."""
        if not os.path.isdir(self.git.root):
            raise Skip(NO_REPOSITORY, "no such directory" if not os.path.lexists(self.git.root) else "no directory")
        answer = self.git.ask("rev-parse", "--is-inside-work-tree", "--show-cdup", "--absolute-git-dir")
        if answer.exit_code != 0:
            raise _refusal(answer, self.git.root)
        inside, _, rest = answer.line.partition("\n")
        if inside != "true":
            raise Skip(NO_REPOSITORY, "no work tree")
        above, _, git_directory = rest.partition("\n")
        if above:
            raise Skip(NO_REPOSITORY, "only a part of one")
        return git_directory

    def _read_upstream(self, git_directory: str) -> str:
        """Return what the branch that is checked out follows, for people; it need not have been fetched yet."""
        head = self.git.ask("symbolic-ref", "--quiet", "HEAD").line
        if not head:
            unfinished = read_unfinished(git_directory)
            raise Skip(NO_UPSTREAM, f"{unfinished} is in progress" if unfinished else "no branch is checked out")
        branch = head.removeprefix("refs/heads/")
        merge, remote = (self.git.ask("config", "--get", f"branch.{branch}.{key}").line for key in ("merge", "remote"))
        if not merge or not remote:
            raise Skip(NO_UPSTREAM, f"{shown_words(branch)} follows no branch of a remote")
        return shown_words(f"{merge.removeprefix('refs/heads/')} of {remote}")

    def _read_commit(self, name: str) -> str:
        """Return a commit, or `""` where there is none (a branch on which nothing was ever committed)."""
        return self.git.ask("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}").line

    def _read_found(self, git_directory: str, target: str) -> Found:
        if self.before:
            counts = self.git.output_of("rev-list", "--count", "--left-right", f"{self.before}...{target}", "--")
            ahead, behind = map(int, counts.split("\t"))
        else:
            ahead, behind = 0, int(self.git.output_of("rev-list", "--count", target, "--"))
        if ahead or not behind:
            return Found(ahead=ahead, behind=behind)
        status = self.git.output_of(
            "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=all"
        )
        return Found(
            ahead=ahead, behind=behind, changed=status.count("\0"), unfinished=read_unfinished(git_directory)
        )  # fmt: skip

    # The pull

    def _merge(self, target: str) -> None:
        try:
            take_back = self.owe(self.before, target)
        except MaintlockError as error:  # nothing may be owed unrecorded
            raise GitError(f"not pulled, as what that owes cannot be written down: {error}") from error
        answer = self.git.ask("merge", "--ff-only", "--no-stat", "--quiet", target)
        self.after = self._read_commit("HEAD")
        if answer.exit_code == 0:
            return
        if self.after != self.before:
            raise GitError(f"git merge: pulled, and then: {_said(answer)}")
        if answer.exit_code > 0:  # git itself has refused; who was killed may have changed files already
            with suppress(MaintlockError):  # then it stays owed, which costs a run
                take_back()
        if "would be overwritten by merge" in answer.err:
            raise Skip(DIRTY, "files here are in the way: " + ", ".join(_in_the_way(answer.err)))
        raise GitError(f"git merge: {_said(answer)}")


def read_unfinished(git_directory: str) -> str:
    """Return what the user has begun here and not ended, or `""`."""
    return next((what for name, what in UNFINISHED.items() if os.path.lexists(f"{git_directory}/{name}")), "")


def _refusal(answer: Answer, root: str) -> Skip | GitError:
    """Return why git does not take a directory for a repository that it may work in."""
    if "dubious ownership" in answer.err:
        return GitError(
            f"the repository belongs to somebody else; if you trust it: "
            f"git config --global --add safe.directory {shown_words(os.path.realpath(root))}"
        )
    if "not a git repository" in answer.err or "bare repository" in answer.err:
        return Skip(NO_REPOSITORY)
    return GitError(f"git rev-parse: {_said(answer)}")


def _said(answer: Answer) -> str:
    return f"was killed by signal {-answer.exit_code}" if answer.exit_code < 0 else meant(answer.err)


def _in_the_way(err: str) -> list[str]:
    """Return the files that a merge would overwrite, the first few of them."""
    files = [shown_words(line) for line in err.splitlines() if line.startswith("\t")]
    return [*files[:3], *([f"{len(files) - 3} more"] if len(files) > 3 else [])]
