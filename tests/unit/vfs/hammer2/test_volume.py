"""Which header counts, which devices make a volume, and one sentence for each that do not."""

from __future__ import annotations

import pytest

from dfuser.libkern.errno import EINVAL, EIO, KError
from dfuser.vfs.hammer2.errors import VolumeError
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData
from dfuser.vfs.hammer2.reader import Reader
from dfuser.vfs.hammer2.volume import Device, open_set, open_volume, read_headers
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.builder import GIB, Builder, split_devices
from tests.unit.vfs.hammer2.images import SparseImage

MIB = 1 << 20


def small(**header: object) -> SparseImage:
    """A volume with an empty PFS and whatever in its header."""
    builder = Builder()
    return builder.finish(builder.pfs(b"ROOT", ()), **header)


def refusal(*devices: Device) -> VolumeError:
    """Why some devices are refused."""
    with pytest.raises(VolumeError) as caught:
        open_set(devices)
    assert caught.value.strerror.count("\n") == 0
    return caught.value


def test_the_newest_header_counts():
    # What if an old copy were mounted and the last flush were lost?
    volume = open_volume(images.load("four_headers").device())
    tids = [copy.header.mirror_tid for copy in volume.copies if copy.header]
    assert tids == [20, 21, 22, 19]
    assert volume.best == 2
    assert volume.header.mirror_tid == 22
    assert all(copy.valid for copy in volume.copies)


@pytest.mark.parametrize("broken", [(2,), (2, 1), (0, 1, 2), (0, 1, 3)])
@pytest.mark.parametrize("at", [0x00, 0x30, 0x1F8, 0x1FC, 0x240, 0x800, 0x5000, 0xFFFC])
def test_torn_headers_fall_back(broken, at):
    # What if a header torn by a power cut made the volume unreadable, or were believed?
    image = images.load("four_headers")

    def read_at(offset: int, size: int) -> bytes:
        data = bytearray(image.read_at(offset, size))
        if size == 65536 and offset // (2 * GIB) in broken:
            data[at] ^= 0x80
        return bytes(data)

    volume = open_volume(Device("torn", image.size, read_at))
    left = {0: 20, 1: 21, 2: 22, 3: 19}
    for number in broken:
        del left[number]
        assert volume.copies[number].problem
    assert volume.header.mirror_tid == max(left.values())
    labels = [pfs.label for pfs in Reader(open_set([volume.device])).pfs_list()]
    assert b"DATA" in labels
    # Each flush after the third made one more PFS.
    assert (b"p5" in labels) is (volume.header.mirror_tid == 22)


def test_older_headers_can_be_asked_for():
    # What if the state of an earlier flush could not be looked at after a later one went wrong?
    device = images.load("four_headers").device()
    made = {3: 2, 0: 3, 1: 4, 2: 5}
    for number, count in made.items():
        reader = Reader(open_set([device], number))
        labels = sorted(pfs.label for pfs in reader.pfs_list() if pfs.label.startswith(b"p"))
        assert labels == [b"p%d" % n for n in range(1, count + 1)]
        assert reader.volume.volumes[0].best == number
    with pytest.raises(VolumeError, match="too few for that HAMMER2 header"):
        open_volume(images.load("fresh").device(), 1)
    with pytest.raises(VolumeError, match="copy 0 has a wrong CRC"):
        open_volume(images.load("four_headers").flipped(100, 1), 0)


def test_of_equal_headers_the_first_counts():
    # What if two copies of one flush made the choice depend on chance?
    image = SparseImage(8 * GIB)
    for number in range(4):
        header = VolumeData(volu_size=8 * GIB, mirror_tid=9, bulkfree_tid=number)
        image.write_at(number * 2 * GIB, header.seal())
    assert open_volume(image.device()).best == 0


def test_no_header_at_all():
    # What if something else were taken for a volume?
    error = refusal(SparseImage(64 * MIB, "blank").device())
    assert error.errno == EINVAL
    assert error.strerror == "blank is no HAMMER2 volume: no header has its magic number"
    assert "too few" in refusal(SparseImage(65535).device()).strerror
    assert "needs a device" in refusal().strerror


def test_the_other_byte_order():
    # What if a volume of a big-endian machine were read as rubbish?
    image = small()
    image.write_at(0, image.read_at(0, 8)[::-1])
    error = refusal(image.device())
    assert error.strerror == "image was made on a machine with the other byte order"


@pytest.mark.parametrize(
    ("version", "words"), [(3, "version 3, newer than 2"), (0, "version 0, which never was")]
)
def test_versions_nobody_knows(version, words):
    # What if a volume of a later format were changed by the rules of this one?
    assert words in refusal(small(version=version).device()).strerror


def test_damaged_single_header():
    # What if the message did not say which copy is wrong, and how?
    error = refusal(small().flipped(0x2A, 0))
    assert error.strerror == (
        "image has no intact HAMMER2 header: copy 0 has a wrong CRC of sector 0"
    )


@pytest.mark.parametrize("size", [65536, 32 * MIB, 64 * MIB - 1])
def test_truncated_images(size):
    # What if an image cut off in the middle were mounted and failed later?
    error = refusal(small().device(size))
    assert error.strerror == f"image is truncated: {size} bytes of a volume of {64 * MIB}"


def test_a_device_may_be_larger_than_its_volume():
    # What if a volume could not be opened before it is grown?
    image = small()
    image.size = 128 * MIB
    volume = open_set([image.device()])
    assert volume.size == 64 * MIB
    assert volume.name == "image"


def test_headers_that_contradict_themselves():
    # What if an intact header of something else, or of no size, were used?
    assert "not HAMMER2" in refusal(small(fstype=bytes(16)).device()).strerror
    assert "one of 65 devices" in refusal(small(nvolumes=65).device()).strerror
    assert "has 4096 bytes" in refusal(small(volu_size=4096).device()).strerror


def test_headers_that_cannot_be_read():
    # What if one bad sector under a header hid the other three?
    image = images.load("four_headers")

    def read_at(offset: int, size: int) -> bytes:
        if offset in bad:
            raise KError(EIO)
        return image.read_at(offset, size)

    device = Device("sick", image.size, read_at)
    bad = {4 * GIB}
    assert open_volume(device).header.mirror_tid == 21
    assert "cannot be read" in read_headers(device)[2].problem
    bad = {number * 2 * GIB for number in range(4)}
    assert refusal(device).errno == EIO
    short = Device("short", image.size, lambda offset, size: b"")
    assert "behind the end" in refusal(short).strerror


def three_devices() -> list[SparseImage]:
    """A volume of three devices with a file on each."""
    builder = Builder(3 * GIB)
    inodes, names = [], []
    for number in range(3):
        builder.skip_to(number * GIB + 8 * MIB)
        data = builder.file(b"%d" % number * 100_000)
        inode = builder.inode(below=data, size=100_000)
        inodes.append(inode)
        names.append(builder.dirent(b"on%d" % number, inode.key))
    root = builder.pfs(b"ROOT", [*inodes, *names])
    return split_devices(builder, [GIB, GIB, GIB - 8 * MIB], root)


def test_a_volume_of_three_devices():
    # What if a block on the third device were looked for on the first?
    disks = three_devices()
    for order in ([0, 1, 2], [2, 0, 1]):
        volume = open_set([disks[number].device() for number in order])
        assert volume.name == "disk0:disk1:disk2"
        assert volume.size == 3 * GIB - 8 * MIB
        pfs = Reader(volume).pfs(b"ROOT")
        for number in range(3):
            node = pfs.resolve(b"on%d" % number)
            assert node.bref.offset // GIB == number
            assert pfs.read(node, 0, 200_000) == b"%d" % number * 100_000
            assert node.meta.type == ObjType.REGFILE


def test_devices_that_make_no_volume():
    # What if a volume were used without one of its devices, or with somebody else's?
    disks = [disk.device() for disk in three_devices()]
    assert "3 devices, 2 given; missing: 1" in refusal(disks[0], disks[2]).strerror
    assert "given twice: disk1, disk1" in refusal(disks[1], disks[1], disks[0]).strerror
    other = Builder(GIB)
    alien = split_devices(other, [GIB], other.pfs(b"ROOT", ()))[0].device()
    assert "different volumes" in refusal(disks[0], alien).strerror
    assert "one device; 2 given" in refusal(small().device(), disks[0]).strerror


def test_devices_with_gaps_between():
    # What if devices overlapped in the volume, so that one block were two?
    for change in ({"volu_loff": (0, 2 * GIB, *(0,) * 62)}, {"total_size": GIB}):
        disks = three_devices()
        header = VolumeData.unpack_from(disks[0].read_at(0, 65536)).replace(**change)
        disks[0].write_at(0, header.seal())
        words = refusal(*[disk.device() for disk in disks]).strerror
        assert "does not begin where" in words or "their volume" in words


def test_one_device_of_version_2():
    # What if DragonFly's newer single volumes were taken for a set?
    for name in images.NAMES:
        volume = open_set([images.load(name).device()])
        assert (volume.header.version, volume.header.nvolumes) == (2, 1)
        assert volume.size == images.load(name).size == volume.header.total_size
