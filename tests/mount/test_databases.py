"""sqlite on the mount: each journal mode, WAL with its shared memory, several writers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ALL_BYTES = "select sum(length(data)), group_concat(hex(data), '') from t"
WRITER = """
import sqlite3, sys
path, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
for n in range(count):
    db.execute("begin immediate")
    db.execute("insert into t values (?, ?)", (who, n))
    db.execute("update total set n = n + 1")
    db.execute("commit")
db.close()
"""


def check(db: sqlite3.Connection) -> None:
    """Let sqlite look at every page."""
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off", "wal"])
def test_journal_modes(place: Path, mode: str) -> None:
    """What if a journal mode's renames, truncations or mappings did not hold."""
    path = place / "db"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        db.execute("create table t (n integer primary key, text)")
        for start in range(0, 3000, 500):
            with db:
                db.executemany(
                    "insert into t values (?, ?)",
                    ((n, f"{n}" * 20) for n in range(start, start + 500)),
                )
        with db:
            db.execute("delete from t where n % 3 = 0")
        if mode not in ("off",):
            db.execute("insert into t values (1000000, 'gone')")
            db.rollback()
        db.execute("vacuum")
        check(db)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select count(*), max(n) from t").fetchone() == (2000, 2999)
        check(db)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_four_writers(place: Path, mode: str) -> None:
    """What if locks let two writers in at once: the total would be short."""
    path = place / "db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma journal_mode={mode}")
        db.executescript("create table t (who, n); create table total (n)")
        with db:
            db.execute("insert into total values (0)")
    count = 25
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(who), str(count)])
        for who in range(4)
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0, 0, 0]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select n from total").fetchone() == (4 * count,)
        assert db.execute("select count(distinct who * 1000 + n) from t").fetchone() == (100,)
        check(db)


def test_mapped_reads(place: Path) -> None:
    """What if reads through a mapping (mmap_size) showed other bytes than read(2)."""
    path = place / "db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table t (n integer primary key, data blob)")
        with db:
            db.executemany("insert into t values (?, randomblob(3000))", ((n,) for n in range(500)))
        plain = db.execute(
            "select sum(length(data)), group_concat(hex(data), '') from t"
        ).fetchone()
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma mmap_size=100000000")
        mapped = db.execute(
            "select sum(length(data)), group_concat(hex(data), '') from t"
        ).fetchone()
        check(db)
    assert mapped == plain


def test_killed_writer_leaves_a_good_database(place: Path) -> None:
    """What if a writer that was killed left a journal that cannot be rolled back."""
    path = place / "db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("create table t (who, n); create table total (n)")
        with db:
            db.execute("insert into total values (0)")
    command = [sys.executable, "-c", WRITER, str(path), "1", "1000000"]
    with closing(sqlite3.connect(path, timeout=60)) as db:
        for _ in range(3):
            writer = subprocess.Popen(command)
            before = db.execute("select n from total").fetchone()[0]
            while db.execute("select n from total").fetchone()[0] < before + 5:
                assert writer.poll() is None
            writer.kill()
            writer.wait()
            check(db)
            rows = db.execute("select count(*) from t").fetchone()
            assert db.execute("select n from total").fetchone() == rows
