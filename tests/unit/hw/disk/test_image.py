"""Image files: holes, locks, direct I/O, what waits and what does not."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.hw.disk.executor import HeldExecutor, ThreadExecutor
from dfuser.hw.disk.image import ImageDisk
from dfuser.libkern.errno import EBUSY, EEXIST, EINVAL, EIO, ENOENT, EROFS, KError

MIB = 1 << 20


def test_images_are_sparse_and_give_back(tmp_path: Path) -> None:
    """What if a large image is made, written a little, trimmed and zeroed?"""
    with ImageDisk.create(tmp_path / "a.img", 1 << 35) as disk:
        assert disk.allocated() < MIB
        disk.write(1 << 34, b"x" * MIB)
        disk.flush()
        assert disk.allocated() >= MIB
        disk.trim(1 << 34, MIB)
        disk.flush()
        assert disk.allocated() < MIB
        assert disk.read(1 << 34, 4096) == bytes(4096)
        disk.write(0, b"y" * 8192)
        disk.zero(512, 4096)
        assert disk.read(0, 8192) == b"y" * 512 + bytes(4096) + b"y" * 3584
    assert stat.S_IMODE((tmp_path / "a.img").stat().st_mode) == 0o600


def test_create_does_not_overwrite(tmp_path: Path) -> None:
    """What if the name is taken, or the size is none: is an old file safe, is nothing left?"""
    (tmp_path / "old").write_bytes(b"precious")
    with pytest.raises(KError) as refused:
        ImageDisk.create(tmp_path / "old", MIB)
    assert refused.value.errno == EEXIST
    assert (tmp_path / "old").read_bytes() == b"precious"
    for size in (0, 1000, -512):
        with pytest.raises(KError):
            ImageDisk.create(tmp_path / "new", size)
    assert not (tmp_path / "new").exists()


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    """What if a new image cannot be opened after all, for its sector size: does its file stay?"""
    with pytest.raises(KError) as refused:
        ImageDisk.create(tmp_path / "new", 520 * 8, sector_size=520)
    assert refused.value.errno == EINVAL
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: p / "absent", ENOENT),
        (lambda p: p, EINVAL),
        (lambda p: Path("/dev/null"), EINVAL),
        (lambda p: ((p / "empty").write_bytes(b"") and None) or p / "empty", EINVAL),
    ],
)
def test_what_is_no_image(tmp_path: Path, make: object, error: int) -> None:
    """What if the path is absent, a directory, a character device, or an empty file?"""
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(KError) as refused:
        ImageDisk.open(path)
    assert refused.value.errno == error
    assert str(path) in refused.value.strerror


def test_an_odd_tail_is_left_alone(tmp_path: Path) -> None:
    """What if the file is not a multiple of the sector size?"""
    (tmp_path / "odd").write_bytes(b"z" * 1300)
    with ImageDisk.open(tmp_path / "odd") as disk:
        assert disk.size == 1024
        disk.write(512, bytes(512))
    assert (tmp_path / "odd").read_bytes() == b"z" * 512 + bytes(512) + b"z" * 276


def test_resize(tmp_path: Path) -> None:
    """What if an image grows, is asked to shrink, or is read-only?"""
    path = tmp_path / "a.img"
    with ImageDisk.create(path, MIB) as disk:
        disk.resize(2 * MIB)
        disk.write(2 * MIB - 512, b"e" * 512)
        for size in (MIB, 2 * MIB + 1):
            with pytest.raises(KError) as refused:
                disk.resize(size)
            assert refused.value.errno == EINVAL
    with ImageDisk.open(path, readonly=True) as disk:
        assert disk.size == 2 * MIB
        with pytest.raises(KError) as refused:
            disk.resize(4 * MIB)
        assert refused.value.errno == EROFS


def test_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    """What if somebody truncates the image under the disk: endless loop, or EIO?"""
    path = tmp_path / "a.img"
    with ImageDisk.create(path, MIB) as disk:
        os.truncate(path, 4096)
        with pytest.raises(KError) as refused:
            disk.read(0, 8192)
        assert refused.value.errno == EIO


# --- locks ---------------------------------------------------------------------------------


def test_second_writer_in_the_same_process(tmp_path: Path) -> None:
    """What if the same process opens an image twice, for writing and for reading?"""
    path = tmp_path / "a.img"
    first = ImageDisk.create(path, MIB)
    for readonly in (False, True):
        with pytest.raises(KError) as refused:
            ImageDisk.open(path, readonly=readonly)
        assert refused.value.errno == EBUSY
        assert "this process" in refused.value.strerror
        assert "writing" in refused.value.strerror
    first.close()
    readers = [ImageDisk.open(path, readonly=True) for _ in range(3)]
    with pytest.raises(KError) as refused:
        ImageDisk.open(path)
    assert "reading" in refused.value.strerror
    for reader in readers:
        reader.close()
    ImageDisk.open(path).close()


def test_second_writer_in_another_process(tmp_path: Path) -> None:
    """What if another process has the image: does the message name it? And when it is killed?"""
    path = tmp_path / "a.img"
    ImageDisk.create(path, MIB).close()
    code = (
        "import sys; from dfuser.hw.disk.image import ImageDisk;"
        "d = ImageDisk.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(KError) as refused:
            ImageDisk.open(path)
        assert refused.value.errno == EBUSY
        assert f"process {child.pid} (python" in refused.value.strerror
        child.kill()
    ImageDisk.open(path).close()


QEMU_IO = shutil.which("qemu-io")


@pytest.mark.skipif(QEMU_IO is None, reason="qemu-io (Debian: qemu-utils) is not installed")
def test_qemu_is_kept_out_and_keeps_us_out(tmp_path: Path) -> None:
    """What if qemu opens an image that we have, and we one that qemu has?"""
    assert QEMU_IO is not None
    path = tmp_path / "a.img"
    command = [QEMU_IO, "-f", "raw", str(path)]
    with ImageDisk.create(path, MIB):
        done = subprocess.run([*command, "-c", "write 0 512"], capture_output=True, check=False)
        assert done.returncode
        assert b"lock" in done.stderr
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"write 0 512\n")
        child.stdin.flush()
        assert b"wrote" in child.stdout.readline()
        with pytest.raises(KError) as refused:
            ImageDisk.open(path)
        assert refused.value.errno == EBUSY
        assert f"process {child.pid} (qemu-io)" in refused.value.strerror
        child.stdin.close()
    ImageDisk.open(path).close()


# --- what waits ----------------------------------------------------------------------------


def test_only_what_waits_leaves(tmp_path: Path) -> None:
    """What if requests of each kind are submitted: which of them go to the executor?"""
    held = HeldExecutor()
    done: list[DiskCmd] = []
    with ImageDisk.create(tmp_path / "a.img", MIB, executor=held) as disk:
        buffer = bytearray(512)

        def note(request: DiskRequest) -> None:
            assert not request.error
            done.append(request.cmd)

        disk.submit(DiskRequest.read(0, (buffer,), note))
        disk.submit(DiskRequest.write(0, (b"p" * 512,), note))
        disk.submit(DiskRequest(DiskCmd.TRIM, 4096, 4096, done=note))
        disk.submit(DiskRequest(DiskCmd.ZERO, 4096, 4096, done=note))
        assert done == [DiskCmd.READ, DiskCmd.WRITE, DiskCmd.TRIM, DiskCmd.ZERO]
        disk.submit(DiskRequest.write(512, (b"f" * 512,), note, fua=True))
        disk.submit(DiskRequest(DiskCmd.FLUSH, done=note))
        assert len(done) == 4
        assert disk.statistics().inflight == 2
        held.release(1)
        assert done[-1] is DiskCmd.FLUSH
        held.release_all()
        assert disk.statistics().waited == 2
        assert disk.read(0, 1024) == b"p" * 512 + b"f" * 512


async def test_threads_bring_everything_back(tmp_path: Path) -> None:
    """What if many flushes are submitted at once to few threads, and the pump is cancelled?"""
    executor = ThreadExecutor(limit=3)
    done: list[int] = []
    with ImageDisk.create(tmp_path / "a.img", MIB, executor=executor) as disk:
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.run)
            for number in range(20):
                request = DiskRequest.write(
                    number * 512,
                    (bytes([number]) * 512,),
                    lambda r: done.append(r.offset // 512),
                    fua=True,
                )
                disk.submit(request)
            assert not done
            nursery.cancel_scope.cancel()
        assert sorted(done) == list(range(20))
        seen = executor.statistics()
        assert (seen.running, seen.running_max, seen.queued, seen.executed) == (0, 3, 0, 20)
        for number in range(20):
            assert disk.read(number * 512, 512) == bytes([number]) * 512


async def test_work_before_the_pump_runs_waits_for_it(tmp_path: Path) -> None:
    """What if a flush is submitted before the executor's pump has started?"""
    executor = ThreadExecutor()
    done: list[DiskRequest] = []
    with ImageDisk.create(tmp_path / "a.img", MIB, executor=executor) as disk:
        disk.submit(DiskRequest(DiskCmd.FLUSH, done=done.append))
        assert executor.statistics().queued == 1
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.run)
            await executor.drain()
            nursery.cancel_scope.cancel()
        assert [request.error for request in done] == [0]


def test_direct_transfers_larger_than_the_bounce_buffer(tmp_path: Path) -> None:
    """What if a direct transfer is larger than the aligned buffer, and in odd pieces?"""
    held = HeldExecutor()
    try:
        disk = ImageDisk.create(
            tmp_path / "d.img", 8 * MIB, direct=True, sector_size=4096, executor=held
        )
    except KError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    with disk:
        data = os.urandom(3 * MIB)
        done: list[DiskRequest] = []
        pieces = (data[:5], data[5:MIB], data[MIB:])
        disk.submit(DiskRequest.write(4096, pieces, done.append))
        back = bytearray(3 * MIB)
        assert not done
        held.release_all()
        disk.submit(DiskRequest.read(4096, (back,), done.append))
        held.release_all()
        assert [request.error for request in done] == [0, 0]
        assert back == data
        disk.zero(4096, 4096)
        assert disk.read(4096, 8192) == bytes(4096) + data[4096:8192]


class NoHoles(ImageDisk):
    """An image on a file system that cannot punch holes; ``answer`` is what it says."""

    answer = errno.EOPNOTSUPP

    def _allocate(self, mode: int, offset: int, length: int) -> int:
        return self.answer


class Broken(NoHoles):
    """An image whose file system fails."""

    answer = errno.EIO


def test_file_systems_without_holes(tmp_path: Path) -> None:
    """What if the host cannot punch holes, or fails to: are zeroes written, is trim harmless?"""
    with NoHoles.create(tmp_path / "a.img", MIB) as disk:
        disk.write(0, b"x" * 300_032)
        assert disk.can_trim
        disk.trim(0, 4096)
        assert not disk.can_trim
        assert disk.read(0, 4096) == b"x" * 4096
        disk.zero(512, 200_704)
        assert disk.read(0, 300_032) == b"x" * 512 + bytes(200_704) + b"x" * 98_816
        assert disk.allocated() >= 300_032
    with Broken.open(tmp_path / "a.img") as disk:
        for call in (disk.trim, disk.zero):
            with pytest.raises(KError) as failed:
                call(0, 512)
            assert failed.value.errno == EIO


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    """What if a transfer has thousands of pieces?"""
    pieces = [bytes([n % 251]) * (n % 3 + 511) for n in range(3000)]
    size = sum(map(len, pieces))
    pieces.append(bytes(-size % 512))
    total = b"".join(pieces)
    done: list[int] = []
    with ImageDisk.create(tmp_path / "a.img", 2 * MIB) as disk:
        disk.submit(DiskRequest.write(512, pieces, lambda r: done.append(r.error)))
        back = [bytearray(len(piece)) for piece in pieces]
        disk.submit(DiskRequest.read(512, back, lambda r: done.append(r.error)))
        assert done == [0, 0]
        assert b"".join(back) == total
        assert disk.read(512, len(total)) == total
