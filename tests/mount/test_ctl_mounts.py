"""Mounts made through the control socket, seen by the host as soon as the command returns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfuser.client import Connection, choose
from tests.mount.mounted import mounted
from tests.mount.rig import eventually

pytestmark = pytest.mark.mount
ROUNDS = 200


def order(kernel: Connection, by: str, what: str) -> None:
    """Mount on /on or unmount it, by the port of the file system or by /kern/ctl."""
    if by == "kern":
        line = "mount -t tmpfs tmpfs /on" if what == "mount" else "umount /on"
        kernel.domsg("kern", "write", name="ctl", text=line)
    elif what == "mount":
        kernel.domsg("vfs", "mount", fstype="tmpfs", on="/on")
    else:
        kernel.domsg("vfs", "unmount", on="/on")


@pytest.mark.parametrize("by", ["vfs", "kern"])
def test_the_host_sees_a_mount_when_the_command_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """What if the host has cached the directory, and a program looks right after its command?"""
    run_dir = tmp_path / "run"
    monkeypatch.setenv("DFUSER_RUN_DIR", str(run_dir))
    with mounted() as mount:
        eventually(lambda: any(run_dir.glob("*.sock")), "the control socket")
        on = mount.path / "on"
        on.mkdir()
        (on / "below").write_text("")
        with Connection(choose(str(mount.path)).socket) as kernel:
            for _ in range(ROUNDS):
                assert os.listdir(on) == ["below"]
                assert (on / "below").exists()
                order(kernel, by, "mount")
                assert not (on / "below").exists()
                order(kernel, by, "umount")
