"""Disks by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfuser.hw.disk.image import ImageDisk
from dfuser.hw.disk.nbd import BlockingNbdDisk, NbdDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.disk.spec import DiskSpec, parse_size
from dfuser.libkern.errno import EINVAL, EROFS, KError
from tests.unit.hw.disk.nbdserver import Server, ThreadServer


def test_names_of_all_kinds() -> None:
    """What if each kind of name is read?"""
    assert DiskSpec.parse("/a b?ro") == DiskSpec("file", "/a b?ro")
    assert DiskSpec.parse("file:x?ro&direct&create=8g&sector=4k") == DiskSpec(
        "file", "x", True, True, 8 << 30, 4096
    )
    assert DiskSpec.parse("ram:64m") == DiskSpec("ram", "64m")
    assert DiskSpec.parse("nbd://h/x").scheme == "nbd"
    assert [parse_size(t) for t in ("0", "512", "1K", "2t")] == [0, 512, 1024, 2 << 40]


@pytest.mark.parametrize(
    "text",
    ["file:", "ram:", "file:x?what", "file:x?ro=1", "ram:1m?direct", "nbd:x", "nbd+unix:///x",
     "file:x?create=many", "file:x?create=-1"],
)  # fmt: skip
def test_names_that_say_nothing(text: str) -> None:
    """What if a name is wrong: is there an EINVAL that says where?"""
    with pytest.raises(KError) as refused:
        DiskSpec.parse(text)
    assert refused.value.errno == EINVAL


async def test_opening_by_name(tmp_path: Path) -> None:
    """What if disks of each kind are opened, created, and opened again?"""
    name = f"file:{tmp_path}/a.img?create=1m&sector=4096"
    for _ in range(2):
        with DiskSpec.parse(name).open() as image:
            assert isinstance(image, ImageDisk)
            assert (image.size, image.sector_size) == (1 << 20, 4096)
    with DiskSpec.parse(f"file:{tmp_path}/a.img?ro").open() as image, pytest.raises(KError) as no:
        image.write(0, bytes(512))
    assert no.value.errno == EROFS
    with await DiskSpec.parse("ram:1m").open_async() as ram:
        assert isinstance(ram, RamDisk)
    server = ThreadServer(Server(1 << 20), tmp_path / "s")
    spec = DiskSpec.parse(f"nbd+unix:///?socket={tmp_path}/s")
    disk = await spec.open_async()
    assert isinstance(disk, NbdDisk)
    await disk.aclose()
    with spec.open() as blocking:
        assert isinstance(blocking, BlockingNbdDisk)
    server.stop()
