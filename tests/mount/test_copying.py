"""Programs that copy whole trees: tar, cp, rsync, zip. What arrives must be what was sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.tools import fingerprint, run, sample_tree

pytestmark = pytest.mark.mount


def test_tar_into_the_mount(place: Path, twin: Path) -> None:
    """What if tar's modes, times, links and sparse files did not survive the way in."""
    source = sample_tree(twin / "tree")
    run("tar", "--xattrs", "-S", "-cf", twin / "all.tar", "-C", twin, "tree")
    run("tar", "--xattrs", "-xpf", twin / "all.tar", "-C", place)
    assert fingerprint(place / "tree") == fingerprint(source)


def test_tar_out_of_the_mount(place: Path, twin: Path) -> None:
    """What if a tree made here could not be archived: tar -d compares each file again."""
    source = sample_tree(place / "tree")
    run("tar", "--xattrs", "-S", "-cf", place / "all.tar", "-C", place, "tree")
    run("tar", "-df", place / "all.tar", "-C", place)
    run("tar", "--xattrs", "-xpf", place / "all.tar", "-C", twin)
    assert fingerprint(twin / "tree") == fingerprint(source)


def test_cp_archive(place: Path, twin: Path) -> None:
    """What if cp -a lost something, in, inside or out."""
    source = sample_tree(twin / "tree")
    run("cp", "-a", source, place / "first")
    run("cp", "-a", place / "first", place / "second")
    run("cp", "-a", place / "second", twin / "back")
    assert fingerprint(place / "second") == fingerprint(source) == fingerprint(twin / "back")
    run("diff", "-r", "--no-dereference", "--exclude=fifo", source, place / "second")


@pytest.mark.parametrize("way", ["in", "out"])
def test_rsync(place: Path, twin: Path, way: str) -> None:
    """What if rsync -aHAX saw a difference right after it copied."""
    start, end = (twin, place) if way == "in" else (place, twin)
    source = sample_tree(start / "tree")
    run("rsync", "-aHAX", f"{source}/", end / "copy")
    again = run("rsync", "-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete",
                f"{source}/", end / "copy")  # fmt: skip
    assert again == ""
    assert fingerprint(end / "copy") == fingerprint(source)


def test_rsync_updates_in_place(place: Path, twin: Path) -> None:
    """What if --inplace, --append or --delete left old bytes behind."""
    source = sample_tree(twin / "tree")
    run("rsync", "-aH", f"{source}/", place / "copy")
    for n, path in enumerate(sorted(source.glob("**/*.txt"))):
        if n % 3 == 0:
            path.write_bytes(os.urandom(5000))
        elif n % 3 == 1:
            path.unlink()
    run("rsync", "-aH", "--inplace", "--no-whole-file", "--delete", f"{source}/", place / "copy")
    run("rsync", "-aHX", "--checksum", "--delete", f"{source}/", place / "copy")
    assert fingerprint(place / "copy", times=False) == fingerprint(source, times=False)


def test_sparse_copy(place: Path) -> None:
    """What if a sparse copy had other bytes, or took all the blocks."""
    with (place / "sparse").open("wb") as f:
        f.truncate(20 << 20)
        f.seek(10 << 20)
        f.write(b"here")
    run("cp", "--sparse=always", place / "sparse", place / "copy")
    run("cmp", place / "sparse", place / "copy")
    assert (place / "copy").stat().st_blocks * 512 < 2 << 20


def test_zip(place: Path) -> None:
    """What if an archive written with seeks back and forth were broken."""
    sample_tree(place / "tree")
    (place / "tree" / "fifo").unlink()
    os.unlink(os.fsencode(place / "tree") + b"/not-utf8-\xff\xfe")
    run("zip", "-qry", "all.zip", "tree", cwd=place)
    run("unzip", "-tq", "all.zip", cwd=place)
    run("unzip", "-q", "all.zip", "-d", "back", cwd=place)
    run("diff", "-r", "--no-dereference", "tree", "back/tree", cwd=place)


def test_find_and_du_agree_with_the_host(place: Path, twin: Path) -> None:
    """What if the numbers that find and du add up were not those of the host's tmpfs."""
    for root in (place, twin):
        sample_tree(root / "tree")
    listing = ("find", "tree", "-printf", "%y %m %n %s %U %G %P %l\\n")
    files = [run(*listing, cwd=root).splitlines() for root in (place, twin)]
    ours, hosts = (sorted(line for line in lines if line[0] != "d") for lines in files)
    assert ours == hosts
    counts = [run("find", "tree", "-type", "d", cwd=root).count("\n") for root in (place, twin)]
    assert counts[0] == counts[1]
    plain = ("find", "tree", "-type", "f", "-print0")
    lists = [run(*plain, cwd=root) for root in (place, twin)]
    sums = [
        run("du", "-cbl", "--files0-from=-", cwd=root, text=names)
        for root, names in zip((place, twin), lists, strict=True)
    ]
    assert sums[0].splitlines()[-1] == sums[1].splitlines()[-1]


def test_du_counts_blocks(place: Path) -> None:
    """What if du said nothing, or everything, about 4 MiB of data."""
    (place / "data").write_bytes(os.urandom(4 << 20))
    run("sync", "-f", place / "data")
    kilobytes = int(run("du", "-k", place / "data").split()[0])
    assert 4096 <= kilobytes <= 4096 + 64


def test_rm_removes_all(place: Path) -> None:
    """What if rm -rf met an entry twice or missed one."""
    sample_tree(place / "tree", directories=60, files=600)
    run("rm", "-rf", place / "tree")
    assert os.listdir(place) == []
