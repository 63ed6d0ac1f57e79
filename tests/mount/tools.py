"""What the tests on a mount share: running host tools, sample trees, and comparing trees."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

LIMIT = 120.0


def run(*command: str | Path, cwd: Path | None = None, check: bool = True, text: str = "") -> str:
    """Run a host tool to its end and return what it printed.

    The environment is the caller's without git's and Python's own settings, and with the C locale.
    """
    program = str(command[0])
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=LIMIT,
        env=environment(),
        check=False,
    )
    said = f"{program}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert not check or done.returncode == 0, said
    return done.stdout


def environment() -> dict[str, str]:
    """The environment for host tools: nothing personal, nothing that depends on the place."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "PY"))}
    who = {"NAME": "A Tester", "EMAIL": "tester@example.org", "DATE": "2026-01-01T00:00:00Z"}
    git = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
    return {**kept, **git, "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}


def sample_tree(root: Path, seed: int = 1, directories: int = 20, files: int = 150) -> Path:
    """Make a tree like a source tree's: many small files, a few large, links, odd names, times."""
    draw = random.Random(seed)
    places = [root]
    root.mkdir()
    for n in range(directories):
        place = draw.choice(places) / f"dir-{n}"
        place.mkdir()
        places.append(place)
    made = []
    for n in range(files):
        path = draw.choice(places) / f"file {n}.txt"
        size = draw.choice((0, 10, 500, 4096, 4097, 20_000, 300_000 if n % 30 == 0 else 3000))
        path.write_bytes(draw.randbytes(size))
        path.chmod(draw.choice((0o644, 0o600, 0o755, 0o444, 0o4755, 0o2750)))
        made.append(path)
    _oddities(root, draw, made)
    for path in sorted(root.rglob("*"), reverse=True):
        moment = draw.randrange(10**18, 15 * 10**17)
        os.utime(path, ns=(moment, moment + 1), follow_symlinks=False)
    return root


def _oddities(root: Path, draw: random.Random, made: list[Path]) -> None:
    """Links, a sparse file, an attribute, a fifo, an empty directory, names that are no text."""
    for n in range(5):
        os.link(draw.choice(made), root / f"hard-{n}")
        (root / f"soft-{n}").symlink_to(draw.choice(made).relative_to(root))
    (root / "dangling").symlink_to("nowhere")
    (root / "empty").mkdir()
    os.mkfifo(root / "fifo")
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe", "wb") as f:
        f.write(b"odd")
    with (root / "sparse").open("wb") as f:
        f.truncate(5_000_000)
        f.seek(2_000_000)
        f.write(b"in the middle")
    os.setxattr(made[0], "user.colour", b"green")


def fingerprint(root: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Describe each name below `root`: type, mode, owner, links, size, mtime, content, xattrs."""
    prints = {}
    for directory, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            prints[os.path.relpath(path, os.fsencode(root))] = _print(path, times)
    return prints


def _print(path: bytes, times: bool) -> tuple[object, ...]:
    found = os.lstat(path)
    content: object = None
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as f:
            content = hashlib.file_digest(f, "blake2b").hexdigest()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    directory = stat.S_ISDIR(found.st_mode)
    return (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        None if directory else found.st_size,
        found.st_mtime_ns if times else None,
        content,
        tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in sorted(_xattrs(path))),
    )


def _xattrs(path: bytes) -> list[str]:
    return [n for n in os.listxattr(path, follow_symlinks=False) if n.startswith("user.")]
