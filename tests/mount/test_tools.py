"""Small everyday tools: install, chmod, tail, sort, sed, flock, shell redirection."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.tools import run

pytestmark = pytest.mark.mount


def shell(script: str, cwd: Path) -> str:
    """Run a shell script that stops at the first error."""
    return run("sh", "-euc", script, cwd=cwd)


def test_redirection(place: Path) -> None:
    """What if >, >>, <, <> or here-documents did not do what the shell says."""
    said = shell(
        """
        echo one > f; echo two >> f; cat < f; wc -c < f
        cat > g <<EOF
here
EOF
        cat g f > h; exec 3<> h; read first <&3; echo "$first"; echo tail >&3; cat h
        set -C; if echo no > f 2> /dev/null; then echo clobbered; fi
        """,
        place,
    )
    assert said == "one\ntwo\n8\nhere\nhere\ntail\nwo\n"


def test_pipes_through_files(place: Path) -> None:
    """What if sort, uniq, split, sed -i or tee lost a line."""
    said = shell(
        """
        seq 20000 | sort -R > shuffled; sort -n -o sorted shuffled; seq 20000 | cmp - sorted
        sort -n -o shuffled shuffled; cmp sorted shuffled
        split -l 999 sorted part-; cat part-* | cmp - sorted; ls part-* | wc -l
        sed -i 's/^7$/seven/' sorted; sed -n 7p sorted; wc -l < sorted
        seq 5 | tee a b > c; cmp a b; cmp a c
        dd if=/dev/zero of=zeroes bs=4k count=100 2>/dev/null; wc -c < zeroes
        """,
        place,
    )
    assert said.split() == ["21", "seven", "20000", "409600"]


def test_install_and_modes(place: Path) -> None:
    """What if install, chmod, chown, touch, ln or mv left other modes, owners or times."""
    if os.geteuid() != 0:
        pytest.skip("only root can change owners")
    said = shell(
        """
        echo x > f; install -D -m 4750 -o 7 -g 8 f sub/dir/g; stat -c '%a %u %g %s' sub/dir/g
        chmod -R u=rwX,go= sub; stat -c %a sub sub/dir sub/dir/g
        chown -R 9:10 sub; stat -c %u:%g sub/dir/g; chgrp 11 f; stat -c %g f
        touch -d '2001-02-03 04:05:06.789012345 UTC' f; stat -c %y f
        ln f hard; ln -s f soft; stat -c %h f; readlink -f soft | xargs basename
        mv hard sub/; mv -T sub sub2; ls sub2; mkdir -m 1777 t; stat -c %a t
        """,
        place,
    )
    want = "4750 7 8 2 700 700 700 9:10 11 2001-02-03 04:05:06.789012345 +0000 2 f dir hard 1777"
    assert said.split() == want.split()


def test_tail_follows(place: Path) -> None:
    """What if tail -f did not see what another process appends, or a file that was replaced."""
    path = place / "log"
    path.write_text("first\n")
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-F", "-s", "0.05", str(path)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert tail.stdout is not None
    try:
        assert tail.stdout.readline() == "first\n"
        with path.open("a") as f:
            f.write("second\n")
        assert tail.stdout.readline() == "second\n"
        (place / "new").write_text("third\n")
        os.rename(place / "new", path)
        assert tail.stdout.readline() == "third\n"
    finally:
        tail.kill()
        tail.communicate()


def test_flock_command(place: Path) -> None:
    """What if flock(1) let two commands in at once: the counter would lose some."""
    script = """
        echo 0 > n; touch lock
        for i in 1 2 3 4; do
          (for j in $(seq 25); do flock lock sh -c 'read n < n; echo $((n + 1)) > n'; done) &
        done; wait; cat n
    """
    assert shell(script, place) == "100\n"


def test_df_and_stat_f(place: Path) -> None:
    """What if df printed nonsense or failed."""
    size, used, free = map(int, run("df", "-k", "--output=size,used,avail", place).split()[-3:])
    assert size >= used + free > 0
    assert run("stat", "-f", "-c", "%l", place).strip() == "255"


def test_editors_way_to_save(place: Path) -> None:
    """What if write-to-new, fsync, rename, fsync-directory did not leave the new file."""
    path = place / "text"
    path.write_text("old")
    for n in range(50):
        new = place / ".text.new"
        with new.open("w") as f:
            f.write(f"version {n}")
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
        directory = os.open(place, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        assert path.read_text() == f"version {n}"
    assert os.listdir(place) == ["text"]


def test_dd_seeks_and_truncates(place: Path) -> None:
    """What if conv=notrunc, seek and skip touched other bytes."""
    said = shell(
        """
        seq -w 1000 > f; cp f g
        printf XXXX | dd of=f bs=1 seek=100 conv=notrunc 2>/dev/null
        cmp -l f g | wc -l; truncate -s 50 f; wc -c < f; truncate -s 1M f; wc -c < f
        dd if=g bs=10 skip=5 count=2 2>/dev/null | wc -c
        """,
        place,
    )
    assert said.split() == ["4", "50", "1048576", "20"]
