"""git on the mount: it maps its index, links, renames and locks, and checks what it stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.tools import fingerprint, run, sample_tree

pytestmark = pytest.mark.mount


def git(repository: Path, *args: str | Path) -> str:
    """Run one git command in a repository."""
    return run("git", "-c", "gc.auto=0", "-c", "safe.directory=*", *args, cwd=repository)


@pytest.fixture
def repository(place: Path) -> Path:
    """A repository with three commits of a tree of 170 files."""
    root = sample_tree(place / "repository")
    (root / "fifo").unlink()
    git(root, "init", "-q", "-b", "main")
    for n in range(3):
        (root / "changing.txt").write_text(f"version {n}\n" * 100)
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", f"change {n}")
    return root


def test_status_is_clean(repository: Path) -> None:
    """What if times or inode numbers moved by themselves: status would look at all files again."""
    assert git(repository, "status", "--porcelain") == ""
    subjects = git(repository, "log", "--format=%s").splitlines()
    assert subjects == ["change 2", "change 1", "change 0"]


def test_fsck_and_gc(repository: Path) -> None:
    """What if an object were damaged on its way into a pack."""
    git(repository, "fsck", "--full", "--strict")
    git(repository, "gc", "--aggressive", "--prune=now", "--quiet")
    git(repository, "fsck", "--full")
    assert git(repository, "status", "--porcelain") == ""


def test_clone(repository: Path, place: Path, twin: Path) -> None:
    """What if a clone, here with links or on the host with a copy, had another tree."""
    git(repository, "clone", "-q", "--local", repository, place / "local")
    git(repository, "clone", "-q", "--no-local", repository, twin / "away")
    git(repository, "clone", "-q", "--no-local", twin / "away", place / "back")
    trees = {git(root, "rev-parse", "HEAD^{tree}") for root in (repository, place / "local")}
    assert len(trees | {git(place / "back", "rev-parse", "HEAD^{tree}")}) == 1
    git(place / "back", "fsck", "--full")
    for root in (place / "local", place / "back"):
        assert git(root, "status", "--porcelain") == ""


def test_branches_merge_and_checkout(repository: Path) -> None:
    """What if switching between trees left or lost a file."""
    before = fingerprint(repository / "dir-0", times=False)
    git(repository, "checkout", "-q", "-b", "side", "HEAD~1")
    (repository / "side.txt").write_text("from the side\n")
    git(repository, "add", "side.txt")
    git(repository, "commit", "-q", "-m", "side")
    git(repository, "checkout", "-q", "main")
    assert not (repository / "side.txt").exists()
    git(repository, "merge", "-q", "--no-edit", "side")
    assert (repository / "side.txt").read_text() == "from the side\n"
    git(repository, "rebase", "-q", "HEAD~1")
    git(repository, "stash", "list")
    assert fingerprint(repository / "dir-0", times=False) == before
    git(repository, "fsck")


def test_worktree_and_rename(repository: Path, place: Path) -> None:
    """What if a second work tree or git mv confused the index."""
    git(repository, "worktree", "add", "-q", place / "second", "HEAD~1")
    assert git(place / "second", "status", "--porcelain") == ""
    git(repository, "mv", "changing.txt", "empty-again.txt")
    assert git(repository, "status", "--porcelain") == "R  changing.txt -> empty-again.txt\n"
    git(repository, "reset", "-q", "--hard")
    assert (repository / "changing.txt").exists()
