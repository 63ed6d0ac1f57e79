"""``dfuser trace`` on a real mount: what the host really asks, and nothing left switched on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from dfuser.cli.exits import ExitCode
from dfuser.client import connect
from tests.mount.test_cli import Shell, shell, wait_for

__all__ = ["shell"]
pytestmark = pytest.mark.mount


def level(where: Shell) -> int:
    """The level in force."""
    with connect(str(where.mnt)) as kernel:
        [layer] = kernel.domsg("trace", "layers")
    found: int = layer["statistics"]["level"]
    return found


def tracing(where: Shell, *words: str) -> subprocess.Popen[str]:
    """A trace that has begun."""
    made = where.start("trace", "-m", where.mnt, *words)
    wait_for(lambda: level(where) > 0, made)
    return made


def documents(made: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What a trace printed, once it has ended."""
    out, err = made.communicate(timeout=60)
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_requests_of_this_process(shell: Shell) -> None:
    # What if a program makes a directory: does the trace say who did what, and how it ended?
    shell.ok("mount", "-d", "--transport", "device", "tmpfs", shell.mnt)
    made = tracing(shell, "--json", "--op", "MKDIR,RMDIR", "--pid", str(os.getpid()), "-n", "3")
    subprocess.run(["/bin/mkdir", shell.mnt / "of another"], check=True)
    os.mkdir(shell.mnt / "one", 0o700)
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(shell.mnt / "one" / "..")
    os.rmdir(shell.mnt / "one")
    os.mkdir(shell.mnt / "tmp" / "two", 0o700)
    rows = [document["trace"] for document in documents(made)]
    assert made.returncode == 0
    assert [(row["op"], row["connection"]) for row in rows] == [
        ("MKDIR", "/"), ("RMDIR", "/"), ("MKDIR", "/tmp"),
    ]  # fmt: skip
    assert rows[0]["request"].startswith('1 "one" 0700 umask ')
    assert rows[0]["reply"].startswith("node ")
    assert " dir 07" in rows[0]["reply"]
    assert rows[1]["reply"] == "ok"
    assert all(row["pid"] == os.getpid() and row["latency_ns"] > 0 for row in rows)
    assert level(shell) == 0
    shell.ok("umount", shell.mnt)
    shell.nothing_left()


def test_a_killed_reader_leaves_nothing_on(shell: Shell) -> None:
    # What if the reader is killed with -9?
    shell.ok("mount", "-d", "--transport", "device", "tmpfs", shell.mnt)
    made = tracing(shell)
    made.send_signal(signal.SIGKILL)
    made.wait(60)
    wait_for(lambda: level(shell) == 0)
    shell.ok("umount", shell.mnt)


def test_the_table_agrees_with_what_was_done(shell: Shell) -> None:
    # What if the counters are asked for: do they say as many as there were?
    shell.ok("mount", "-d", "--transport", "device", "tmpfs", shell.mnt)
    made = tracing(shell, "-c", "--json")
    for n in range(50):
        assert not (shell.mnt / f"none{n}").exists()
    made.send_signal(signal.SIGINT)
    [document] = documents(made)
    assert made.returncode == 128 + signal.SIGINT
    [lookups] = [row for row in document["summary"] if row["op"] == "LOOKUP"]
    assert (lookups["count"], lookups["errors"]) == (50, 0)
    text = (shell.mnt / "kern" / "fuse_latency").read_text()
    assert any(line.split()[:2] == ["LOOKUP", "50"] for line in text.splitlines())
    shell.ok("umount", shell.mnt)


def test_the_stock_transport_says_so(shell: Shell) -> None:
    # What if pyfuse3 serves the mount? There is nothing to wait for.
    shell.ok("mount", "-d", "--transport", "pyfuse3", "tmpfs", shell.mnt)
    done = shell.call("trace", "-m", shell.mnt)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert "--transport device" in done.stderr
    shell.ok("umount", shell.mnt)
