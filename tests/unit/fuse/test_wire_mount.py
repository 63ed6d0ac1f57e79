"""The codec against a real kernel: one of everything, over a mount that only the codec serves.

``DFUSER_RECORD=path`` keeps what was said in a file: that is how test_wire_traffic.xz was made.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dfuser.fuse.wire.const import FUSE_KERNEL_MINOR_VERSION, Notify, Opcode
from dfuser.fuse.wire.ext import SuppGroups
from dfuser.fuse.wire.init import Wishes
from dfuser.fuse.wire.kernel import emit_request, parse_reply
from dfuser.fuse.wire.notify import parse_notification
from dfuser.fuse.wire.request import parse_request

from .wire_rawfs import Message, RawFs, mount

CLIENT = Path(__file__).with_name("wire_client.py")
#: What no program can make a kernel send over /dev/fuse: virtiofs and block devices have them.
NEVER_SENT = {
    Opcode.BMAP, Opcode.DESTROY, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.SYNCFS,
}  # fmt: skip
TWO_MOUNTS = (
    (Wishes(), ()),
    (
        Wishes(writeback=True, acl=False, explicit_inval=False, killpriv=False),
        (Opcode.COPY_FILE_RANGE_64,),
    ),
)


def abort(where: Path) -> None:
    """End a connection whatever hangs on it."""
    subprocess.run(["umount", "-f", str(where)], capture_output=True, check=False)
    subprocess.run(["fusermount3", "-u", "-z", str(where)], capture_output=True, check=False)


def session(where: Path, wishes: Wishes, refused: tuple[int, ...]) -> RawFs:
    """Mount, let the client do its work, unmount, and give back what happened."""
    device = mount(where)
    watchdog = threading.Timer(30, abort, [where])
    watchdog.start()
    fs = RawFs(device, wishes, refused)
    client = subprocess.Popen([sys.executable, str(CLIENT), str(where)], stderr=subprocess.PIPE)
    ends: list[subprocess.Popen[bytes]] = []

    def done() -> None:
        if client.poll() is not None and not ends:
            ends.append(subprocess.Popen(["fusermount3", "-u", str(where)]))

    try:
        fs.serve(done)
    finally:
        watchdog.cancel()
        os.close(device)
        if not ends:
            abort(where)
            client.kill()
        for process in ends:
            process.wait()
        _, said = client.communicate()
    if fs.agreed is not None and fs.agreed.announced < FUSE_KERNEL_MINOR_VERSION:
        pytest.skip(f"the running kernel speaks 7.{fs.agreed.announced}")
    assert client.returncode == 0, said.decode()
    return fs


def record(path: str, sessions: list[list[Message]]) -> None:
    """Keep what was said: for each message whether the kernel said it, its length, its bytes."""
    parts = [
        struct.pack("=BBI", number, kernel, len(data)) + data
        for number, messages in enumerate(sessions)
        for kernel, data in messages
    ]
    Path(path).write_bytes(lzma.compress(b"".join(parts), preset=9 | lzma.PRESET_EXTREME))


@pytest.mark.mount
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="fusermount3 is missing")
@pytest.mark.skipif(os.geteuid() != 0, reason="the client needs root for groups and owners")
def test_everything_over_a_real_mount(tmp_path: Path) -> None:
    # What if the kernel sends what the codec cannot read, or refuses what the codec writes?
    sessions = []
    for number, (wishes, refused) in enumerate(TWO_MOUNTS):
        where = tmp_path / str(number)
        where.mkdir()
        fs = session(where, wishes, refused)
        assert fs.errors == []
        sessions.append(fs)
    seen = {request.header.opcode for fs in sessions for request in fs.requests}
    assert set(Opcode) - seen == NEVER_SENT
    groups = [r.extensions for fs in sessions for r in fs.requests if r.extensions]
    assert (SuppGroups((4242,)),) in groups
    for fs in sessions:
        understood(fs)
    if path := os.environ.get("DFUSER_RECORD"):
        record(path, [fs.messages for fs in sessions])


def understood(fs: RawFs) -> None:
    """Each message can be made again from what was understood; each reply fits its request."""
    asked: dict[int, tuple[int, int | None]] = {}
    told = set()
    for kernel, data in fs.messages:
        if kernel:
            request = parse_request(data)
            header, body = request.header, request.body
            asked[header.unique] = header.opcode, getattr(body, "size", None)
            again = emit_request(
                header.opcode, body, unique=header.unique, nodeid=header.nodeid, uid=header.uid,
                gid=header.gid, pid=header.pid, data=data[80:], extensions=request.extensions,
            )  # fmt: skip
            assert again == data
        elif int.from_bytes(data[8:16], sys.byteorder):
            opcode, size = asked[int.from_bytes(data[8:16], sys.byteorder)]
            parse_reply(opcode, data, size)
        else:
            told.add(parse_notification(data))
    assert {int.from_bytes(d[4:8], sys.byteorder) for k, d in fs.messages if not k} >= set(Notify)
    assert len(told) >= len(Notify)
