"""What a name may be: its bytes, its length, its case."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.posix.case import case, refuse, same, table
from tests.posix.tools import folder, put

ODD_NAMES = {
    "space": b" ",
    "newline": b"a\nb",
    "control": bytes(range(1, 32)),
    "high": bytes(range(128, 256)),
    "not-utf8": b"\xff\xfe\x80",
    "half-utf8": b"\xe2\x82",
    "umlaut-nfc": "\u00e4".encode(),
    "umlaut-nfd": "a\u0308".encode(),
    "emoji": "\U0001f409".encode(),
    "backslash": b"\\",
    "star": b"*?[]{}~$`'\"",
    "dash": b"-rf",
    "three-dots": b"...",
    "hidden": b".hidden",
    "dot-end": b"end.",
    "colon": b"a:b|c<d>e",
    "tilde": b"~",
    "255": b"n" * 255,
    "255-utf8": "\u00e4".encode() * 127 + b"x",
}


@table({label: (name,) for label, name in ODD_NAMES.items()})
def odd_name(d: Path, name: bytes) -> None:
    """Any bytes but / and NUL make a name: create, list, rename, remove."""
    path = os.path.join(os.fsencode(d), name)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    same(os.listdir(os.fsencode(d)), [name], "names")
    os.rename(path, path[:-1] + b"~1"[:1] if name != b"~" else path + b"1")
    same(len(os.listdir(d)), 1, "names after the rename")
    os.unlink(os.path.join(os.fsencode(d), os.listdir(os.fsencode(d))[0]))
    os.mkdir(path)
    os.rmdir(path)
    os.symlink(name, path)
    same(os.readlink(path), name, "link text")


@case()
def case_matters(d: Path) -> None:
    """Names that differ in case are different names."""
    for name in ("name", "Name", "NAME"):
        put(d / name, name.encode())
    same((d / "Name").read_bytes(), b"Name", "bytes")
    same(len(os.listdir(d)), 3, "names")


@case()
def normal_forms_differ(d: Path) -> None:
    """Composed and decomposed letters are different names."""
    put(d / "\u00e4")
    put(d / "a\u0308")
    same(len(os.listdir(d)), 2, "names")


@case()
def longest_path(d: Path) -> None:
    """A path of 4,095 bytes works, by way of directories of 255 bytes and slashes."""
    place, part = d, "p" * 200
    while len(str(place)) + 201 < 1000:
        place = folder(place / part)
    put(place / "f", b"abc")
    padded = str(place) + "/" * (4095 - len(str(place)) - 1) + "f"
    same(len(padded), 4095, "length")
    with open(padded, "rb") as f:
        same(f.read(), b"abc", "bytes")


@case()
def limits_are_told(d: Path) -> None:
    """pathconf and statvfs tell 255 for the longest name."""
    same(os.pathconf(d, "PC_NAME_MAX"), 255, "PC_NAME_MAX")
    same(os.statvfs(d).f_namemax, 255, "f_namemax")


@case()
def double_slashes(d: Path) -> None:
    """Several slashes are one, and a slash after a directory is none."""
    put(folder(d / "dir") / "f", b"abc")
    with open(f"{d}//dir////f", "rb") as f:
        same(f.read(), b"abc", "bytes")
    same(os.stat(f"{d}/dir//").st_ino, (d / "dir").stat().st_ino, "inode")


@case()
def dots_through_a_file(d: Path) -> None:
    """file/.. and file/. are ENOTDIR."""
    put(d / "f")
    refuse(errno.ENOTDIR, os.stat, f"{d}/f/..")
    refuse(errno.ENOTDIR, os.stat, f"{d}/f/.")


@case(limit=30.0)
def ten_thousand_names(d: Path) -> None:
    """10,000 names in one directory: each is found, listed and removed."""
    names = [f"{n:x}" for n in range(10_000)]
    for name in names:
        os.mknod(d / name)
    same(sorted(os.listdir(d)), sorted(names), "names")
    with os.scandir(d) as entries:
        same(sum(entry.is_file() for entry in entries), 10_000, "files")
    for name in names:
        os.unlink(d / name)
    os.rmdir(d)
