"""devfs: the live list of devices, clones, aliases, what users make, and the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.dev.clone import CloneBitmap
from dfuser.dev.devsw import Buffer, Cdev, D, DevOps
from dfuser.libkern.errno import (
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    EISDIR,
    ENOATTR,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EWOULDBLOCK,
)
from dfuser.libkern.fcntl import O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY
from dfuser.libkern.klist import HookKnote
from dfuser.libkern.stat import DT_DIR, DT_LNK, VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.block import Block, run_blocking
from dfuser.vfs.devfs import node as node_module
from dfuser.vfs.devfs.node import DEVFS, DevfsMount
from dfuser.vfs.devfs.rules import DevfsRule, DevfsRules, parse_rule, wild_case_cmp
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.syscalls import (
    kern_close,
    kern_create,
    kern_getxattr,
    kern_link,
    kern_listxattr,
    kern_mkdir,
    kern_mknod,
    kern_read,
    kern_rename,
    kern_rmdir,
    kern_setattr,
    kern_symlink,
    kern_unlink,
    kern_write,
)
from dfuser.vfs.vattr import Vattr
from dfuser.vfs.vop import EXTATTR_NAMESPACE_USER

from .synth_world import ROOT, USER, SynthWorld


class EchoOps(DevOps):
    """A driver that gives back what was written to the same open."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__("echo", flags)
        self.open_now = 0

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        self.open_now += 1
        return bytearray()

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        self.open_now -= 1

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        data = bytes(priv[:size])
        del priv[:size]
        return data

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        priv += bytes(data)
        return len(data)


@pytest.fixture
def world() -> Iterator[SynthWorld]:
    made = SynthWorld()
    yield made
    made.close()


def fs_of(world: SynthWorld) -> DevfsMount:
    found: DevfsMount = world.mount_of("devfs").data
    return found


def make(world: SynthWorld, name: str, ops: DevOps | None = None, minor: int = 0) -> Cdev:
    return world.devices.make_dev(ops or EchoOps(), minor, 0, 0, 0o640, name)


# --- devices -------------------------------------------------------------------------------------


def test_the_list_is_shown_live(world: SynthWorld) -> None:
    """What if a device comes and goes while devfs is mounted?"""
    assert world.errno(world.stat, "/dev/new") == ENOENT
    dev = make(world, "new")
    attrs = world.stat("/dev/new")
    assert (attrs.type, attrs.mode, attrs.rmajor, attrs.rminor) == (
        VType.VCHR, 0o640, dev.umajor, 0,
    )  # fmt: skip
    assert "new" in world.names("/dev")
    world.devices.destroy_dev(dev)
    assert world.errno(world.stat, "/dev/new") == ENOENT
    assert "new" not in world.names("/dev")


def test_devices_work_through_the_tree(world: SynthWorld) -> None:
    """What if the host reads and writes the common devices?"""
    zero, null = world.open("/dev/zero"), world.open("/dev/null", O_RDWR)
    assert bytes(kern_read(zero, None, 100_000)) == bytes(100_000)
    assert kern_write(null, None, b"x" * 1000) == 1000
    assert bytes(kern_read(null, 0, 10)) == b""
    kern_close(zero)
    kern_close(null)
    assert world.errno(world.write, "/dev/full", b"x") == ENOSPC
    assert world.errno(world.write, "/dev/urandom", b"x") == EPERM
    world.write("/dev/console", "hello from a user\n")
    assert "hello from a user" in world.msgbuf.text()
    assert all(dev.opencount == 0 for dev in world.devices.devices())


def test_each_open_has_its_own_state(world: SynthWorld) -> None:
    """What if a device is open twice and closed twice?"""
    ops = EchoOps()
    make(world, "echo", ops)
    first, second = world.open("/dev/echo", O_RDWR), world.open("/dev/echo", O_RDWR)
    kern_write(first, 0, b"one")
    kern_write(second, 0, b"two")
    assert bytes(kern_read(first, 0, 10)) == b"one"
    kern_close(first)
    assert ops.open_now == 2
    kern_close(second)
    assert ops.open_now == 1


def test_an_open_device_that_goes_is_enxio(world: SynthWorld) -> None:
    """What if a device is destroyed while it is open?"""
    dev = make(world, "gone")
    file = world.open("/dev/gone", O_RDWR)
    world.devices.destroy_dev(dev)
    assert world.errno(kern_read, file, 0, 1) == ENXIO
    assert world.errno(kern_write, file, 0, b"x") == ENXIO
    assert world.vfs.vnodes.statistics().numvnodes > 0
    nodes = len(world.mount_of("devfs").vnodes)
    kern_close(file)
    assert len(world.mount_of("devfs").vnodes) == nodes - 1
    assert dev.opencount == 0


def test_a_name_used_again_is_another_file(world: SynthWorld) -> None:
    """What if a device goes and another of the same name comes?"""
    dev = make(world, "again")
    before = world.stat("/dev/again").fileid
    world.devices.destroy_dev(dev)
    make(world, "again")
    assert world.stat("/dev/again").fileid > before


def test_what_a_device_is_stands_in_its_attributes(world: SynthWorld) -> None:
    """What if the host, which sees regular files, asks what a device is?"""
    place, root = world.hold("/dev/null"), world.hold("/dev")
    user = EXTATTR_NAMESPACE_USER

    def get(name: bytes) -> bytes:
        return kern_getxattr(world.vfs, place, user, name, ROOT, chk=False)

    listed = kern_listxattr(world.vfs, place, user, ROOT, chk=False)
    assert list(listed) == [b"dfuser.type", b"dfuser.rdev"]
    assert get(b"user.dfuser.type") == b"chr"
    assert get(b"dfuser.rdev") == b"0:2"
    assert world.errno(get, b"nope") == ENOATTR
    assert list(kern_listxattr(world.vfs, root, user, ROOT)) == []
    for nch in (place, root):
        world.vfs.cache.drop_nch(nch)


def test_permissions_are_the_nodes(world: SynthWorld) -> None:
    """What if a user opens what is root's, and root gives it to him in this mount?"""
    make(world, "private")
    assert world.errno(world.open, "/dev/private", O_RDONLY, USER) == EACCES
    place = world.hold("/dev/private")
    kern_setattr(world.vfs, place, Vattr(uid=1000, gid=100, mode=0o600), ROOT)
    assert world.stat("/dev/private").uid == 1000
    kern_close(world.open("/dev/private", O_RDWR, USER))
    assert world.errno(kern_setattr, world.vfs, place, Vattr(uid=0), USER) == EPERM
    assert world.errno(kern_setattr, world.vfs, place, Vattr(flags=1), ROOT) == EOPNOTSUPP
    world.vfs.cache.drop_nch(place)
    second = world.mount("devfs", "/mnt")
    assert world.stat("/mnt/private").uid == 0
    world.vfs.mounts.unmount(second)


def test_truncation_by_a_shell_is_harmless(world: SynthWorld) -> None:
    """What if `echo x > /dev/null` sets the size to 0, or somebody truncates the directory?"""
    place, root = world.hold("/dev/null"), world.hold("/dev")
    kern_setattr(world.vfs, place, Vattr(size=0), ROOT)
    assert world.errno(kern_setattr, world.vfs, root, Vattr(size=0), ROOT) == EISDIR
    for nch in (place, root):
        world.vfs.cache.drop_nch(nch)


def test_reading_without_an_open_is_ebadf(world: SynthWorld) -> None:
    """What if the file system is asked to read a device nobody has opened?"""
    with world.at("/dev/zero") as nd:
        vp = nd.vp
        assert vp is not None
        assert world.errno(vp.ops.use.vop_read, vp, 0, 10, 0, ROOT, None) == EBADF


# --- klog ----------------------------------------------------------------------------------------


def test_a_blocked_klog_reader_is_woken_by_a_message(world: SynthWorld) -> None:
    """What if `cat /dev/klog` has read everything and a message comes?"""
    world.msgbuf.kprintf("old")
    file = world.open("/dev/klog")
    assert bytes(kern_read(file, None, 100)) == b"old\n"
    with pytest.raises(Block):
        kern_read(file, None, 100)
    got: list[bytes] = []

    async def reader() -> None:
        got.append(bytes(await run_blocking(kern_read, file, None, 100)))

    td = world.lwkt.create(reader, name="cat", cpu=0)
    world.lwkt.run_until_idle()
    assert (td.wmesg, got) == ("klog", [])
    assert world.errno(world.open, "/dev/klog") == EBUSY
    world.msgbuf.kprintf("new")
    world.lwkt.run_until_idle()
    assert got == [b"new\n"]
    kern_close(file)
    kern_close(world.open("/dev/klog"))


def test_a_nonblocking_klog_reader_is_told(world: SynthWorld) -> None:
    """What if the log is opened with O_NONBLOCK and is empty?"""
    file = world.open("/dev/klog", O_RDONLY | O_NONBLOCK)
    assert world.errno(kern_read, file, None, 100) == EWOULDBLOCK
    kern_close(file)


def test_a_watched_device_tells_the_vnode(world: SynthWorld) -> None:
    """What if somebody watches /dev/klog, and the vnode is then taken away?"""

    class Note(HookKnote):
        def event(self, hint: int) -> bool:
            return True

    heard: list[int] = []
    with world.at("/dev/klog") as nd:
        vp = nd.vp
        assert vp is not None
        note = Note(0, lambda kn: heard.append(1))
        vp.ops.use.vop_kqfilter(vp, note)
        world.msgbuf.kprintf("a")
        assert heard == [1]
        assert vp.get_klist().remove(note)
    world.msgbuf.kprintf("b")
    assert heard == [1]
    assert len(world.log.klist) == 1
    world.vfs.mounts.unmount(world.mount_of("devfs"), MNT.FORCE)
    assert len(world.log.klist) == 0


def test_a_forced_unmount_closes_devices(world: SynthWorld) -> None:
    """What if /dev/klog is open in a devfs that is unmounted by force?"""
    mp = world.mount("devfs", "/mnt")
    file = world.open("/mnt/klog")
    assert world.errno(world.open, "/dev/klog") == EBUSY
    world.vfs.mounts.unmount(mp, MNT.FORCE)
    assert world.log.log_open is False
    assert world.errno(kern_read, file, 0, 1) == EIO
    kern_close(file)
    kern_close(world.open("/dev/klog"))


# --- names ---------------------------------------------------------------------------------------


def test_directories_come_and_go_with_devices(world: SynthWorld) -> None:
    """What if a device's name has directories in it?"""
    one = make(world, "serno/disk/A1")
    two = make(world, "serno/disk/B2")
    assert sorted(world.names("/dev/serno/disk")) == ["A1", "B2"]
    assert world.entries("/dev/serno")[0].dtype == DT_DIR
    world.devices.destroy_dev(one)
    assert world.names("/dev/serno/disk") == ["B2"]
    world.devices.destroy_dev(two)
    assert world.errno(world.stat, "/dev/serno") == ENOENT


def test_an_alias_is_a_link_to_its_device(world: SynthWorld) -> None:
    """What if a device has aliases near and far?"""
    dev = make(world, "vn0s1")
    world.devices.make_dev_alias(dev, "by-label/root")
    world.devices.make_dev_alias(dev, "rootdisk")
    assert world.readlink("/dev/by-label/root") == "../vn0s1"
    assert world.readlink("/dev/rootdisk") == "vn0s1"
    assert {e.name: e.dtype for e in world.entries("/dev")}[b"rootdisk"] == DT_LNK
    assert world.stat("/dev/by-label/root").size == len("../vn0s1")
    world.devices.destroy_dev_alias(dev, "rootdisk")
    assert world.errno(world.stat, "/dev/rootdisk") == ENOENT
    world.devices.destroy_dev(dev)
    assert world.errno(world.stat, "/dev/by-label") == ENOENT


def test_opening_a_clonable_name_gives_a_new_device(world: SynthWorld) -> None:
    """What if /dev/tap is opened twice: two devices, each with its own data?"""
    units, ops = CloneBitmap(), EchoOps()

    def handler(dev: Cdev, mode: int, cred: Ucred) -> Cdev:
        unit = units.get()
        return world.devices.make_dev(ops, unit, 0, 0, 0o600, f"tap{unit}")

    world.devices.make_autoclone_dev(ops, handler, 0, 0, 0o600, "tap")
    first, second = world.open("/dev/tap", O_RDWR), world.open("/dev/tap", O_RDWR)
    assert {"tap0", "tap1"} <= set(world.names("/dev"))
    kern_write(first, 0, b"A")
    kern_write(second, 0, b"B")
    assert bytes(kern_read(first, 0, 9)) == b"A"
    tap1 = world.devices.find_device_by_name("tap1")
    assert tap1 is not None
    assert tap1.opencount == 1
    kern_close(first)
    kern_close(second)
    assert tap1.opencount == 0


def test_users_make_directories_and_links_only(world: SynthWorld) -> None:
    """What if somebody makes names in /dev?"""
    vfs, dev = world.vfs, world.hold("/dev")
    kern_mkdir(vfs, dev, b"mydir", 0o711, ROOT)
    kern_symlink(vfs, dev, b"mylink", b"null", ROOT)
    assert world.stat("/dev/mydir").mode == 0o711
    assert world.readlink("/dev/mylink") == "null"
    target = world.hold("/dev/null")
    assert world.errno(kern_create, vfs, dev, b"f", 0o644, O_WRONLY, ROOT) == EIO
    assert world.errno(kern_mknod, vfs, dev, b"f", 0o020644, 1, 1, ROOT) == EIO
    assert world.errno(kern_link, vfs, target, dev, b"f", ROOT) == EIO
    assert world.errno(kern_rename, vfs, dev, b"mylink", dev, b"other", 0, ROOT) == EIO
    assert world.errno(kern_mkdir, vfs, dev, b"null", 0o755, ROOT) == EEXIST
    assert world.errno(kern_mkdir, vfs, dev, b"mine", 0o755, USER) == EACCES
    vfs.cache.drop_nch(target)
    vfs.cache.drop_nch(dev)


def test_only_what_users_made_can_be_removed(world: SynthWorld) -> None:
    """What if somebody removes names in /dev?"""
    vfs, dev = world.vfs, world.hold("/dev")
    kern_mkdir(vfs, dev, b"d", 0o755, ROOT)
    inner = world.hold("/dev/d")
    kern_symlink(vfs, inner, b"l", b"x", ROOT)
    assert world.errno(kern_unlink, vfs, dev, b"null", ROOT) == EPERM
    assert world.errno(kern_unlink, vfs, dev, b"d", ROOT) in (EISDIR, EPERM)
    assert world.errno(kern_rmdir, vfs, dev, b"null", ROOT) in (EPERM, ENOTDIR)
    assert world.errno(kern_rmdir, vfs, dev, b"d", ROOT) == ENOTEMPTY
    kern_unlink(vfs, inner, b"l", ROOT)
    assert world.errno(world.stat, "/dev/d/l") == ENOENT
    vfs.cache.drop_nch(inner)
    kern_rmdir(vfs, dev, b"d", ROOT)
    assert world.errno(world.stat, "/dev/d") == ENOENT
    vfs.cache.drop_nch(dev)
    assert fs_of(world).statistics().user_nodes == 0


def test_what_users_make_is_limited(world: SynthWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if somebody makes links without end?"""
    monkeypatch.setattr(node_module, "USER_NODES_MAX", 5)
    dev = world.hold("/dev")
    for i in range(5):
        kern_symlink(world.vfs, dev, b"l%d" % i, b"x", ROOT)
    assert world.errno(kern_symlink, world.vfs, dev, b"more", b"x", ROOT) == ENOSPC
    kern_unlink(world.vfs, dev, b"l0", ROOT)
    kern_symlink(world.vfs, dev, b"more", b"x", ROOT)
    world.vfs.cache.drop_nch(dev)


def test_a_users_name_stays_his(world: SynthWorld) -> None:
    """What if a device appears whose name a user has taken?"""
    dev = world.hold("/dev")
    kern_symlink(world.vfs, dev, b"echo", b"null", ROOT)
    world.vfs.cache.drop_nch(dev)
    device = make(world, "echo")
    assert world.stat("/dev/echo").type is VType.VLNK
    assert "echo exists already" in world.msgbuf.text()
    assert fs_of(world).statistics().collisions == 1
    world.devices.destroy_dev(device)
    assert world.stat("/dev/echo").type is VType.VLNK


# --- rules ---------------------------------------------------------------------------------------

HIDE_VN = "add -n vn* hide"


@pytest.mark.parametrize(
    ("commands", "shown"),
    [
        ([], ["vn0", "vn1", "da0"]),
        ([HIDE_VN], ["da0"]),
        ([HIDE_VN, "add -n vn1 show"], ["vn1", "da0"]),
        (["add -n vn1 show", HIDE_VN], ["da0"]),
        (["add -n VN? hide"], ["da0"]),
        (["add -n v* -t disk hide"], ["vn1", "da0"]),
        (["add -t disk hide"], ["vn1", "da0"]),
        (["add -m /elsewhere -n vn* hide"], ["vn0", "vn1", "da0"]),
        (["add -m /dev -n vn* hide"], ["da0"]),
        (["add -j -n vn* hide"], ["vn0", "vn1", "da0"]),
        (["add -n sub/vn* hide"], ["vn0", "vn1", "da0"]),
        ([HIDE_VN, "clear *"], ["vn0", "vn1", "da0"]),
        ([HIDE_VN, "clear /dev"], ["da0"]),
        (["add -m /dev -n vn* hide", "clear /dev"], ["vn0", "vn1", "da0"]),
    ],
)
@pytest.mark.parametrize("devices_first", [True, False])
def test_the_table_of_rules(
    world: SynthWorld, commands: list[str], shown: list[str], devices_first: bool
) -> None:
    """What if rules of all kinds meet devices that are there, or that come later?"""

    def devices() -> None:
        make(world, "vn0", EchoOps(D.DISK))
        make(world, "vn1", EchoOps(D.TTY))
        make(world, "da0")

    def rules() -> None:
        for command in commands:
            world.write("/dev/devfs", command + "\n")

    if devices_first:
        devices()
        rules()
        world.write("/dev/devfs", "apply *")
    else:
        rules()
        devices()
    assert [n for n in ("vn0", "vn1", "da0") if n in world.names("/dev")] == shown
    for name in ("vn0", "vn1", "da0"):
        assert world.errno(world.stat, f"/dev/{name}") == (0 if name in shown else ENOENT)


def test_a_hidden_device_is_gone_for_those_who_know_it(world: SynthWorld) -> None:
    """What if a name that was just used is hidden, and then shown by a reset?"""
    dev = make(world, "vn0")
    world.devices.make_dev_alias(dev, "disk")
    assert world.stat("/dev/vn0").type is VType.VCHR
    assert world.stat("/dev/disk").type is VType.VLNK
    world.write("/dev/devfs", HIDE_VN)
    world.write("/dev/devfs", "apply /dev")
    assert world.errno(world.open, "/dev/vn0") == ENOENT
    assert world.errno(world.stat, "/dev/disk") == ENOENT
    assert "disk" not in world.names("/dev")
    assert fs_of(world).statistics().hidden == 2
    world.write("/dev/devfs", "clear *")
    world.write("/dev/devfs", "reset /dev")
    assert world.stat("/dev/vn0").type is VType.VCHR
    assert "disk" in world.names("/dev")


def test_names_of_hidden_devices_are_taken(world: SynthWorld) -> None:
    """What if a user makes a name that a hidden device has, or that a rule would hide?"""
    make(world, "vn0")
    world.write("/dev/devfs", HIDE_VN)
    world.write("/dev/devfs", "apply *")
    root = world.hold("/dev")
    assert world.errno(kern_mkdir, world.vfs, root, b"vn0", 0o755, ROOT) == EEXIST
    kern_mkdir(world.vfs, root, b"vn1", 0o755, ROOT)
    assert world.stat("/dev/vn1").type is VType.VDIR
    world.vfs.cache.drop_nch(root)


def test_the_node_devfs_cannot_be_hidden(world: SynthWorld) -> None:
    """What if a rule hides everything?"""
    world.write("/dev/devfs", "add hide")
    world.write("/dev/devfs", "apply *")
    assert world.names("/dev") == ["devfs"]
    world.write("/dev/devfs", "clear *")
    world.write("/dev/devfs", "reset *")
    assert "null" in world.names("/dev")


def test_perm_rules_and_reset(world: SynthWorld) -> None:
    """What if a rule gives devices to a user, and is undone?"""
    make(world, "da0")
    world.write("/dev/devfs", "add -n da* perm 660 1000 100")
    world.write("/dev/devfs", "apply /dev")
    attrs = world.stat("/dev/da0")
    assert (attrs.mode, attrs.uid, attrs.gid) == (0o660, 1000, 100)
    world.write("/dev/devfs", "reset /dev")
    attrs = world.stat("/dev/da0")
    assert (attrs.mode, attrs.uid, attrs.gid) == (0o640, 0, 0)


def test_link_rules(world: SynthWorld) -> None:
    """What if a rule makes links, for devices there and devices to come, and is applied twice?"""
    make(world, "da0s1")
    world.write("/dev/devfs", "add -n da* link disks/my")
    for _ in range(2):
        world.write("/dev/devfs", "apply /dev")
    make(world, "da1")
    stats = world.rules.statistics()
    assert (stats.rules, stats.mounts, stats.matched, stats.commands) == (1, 1, 3, 3)
    assert world.readlink("/dev/disks/my0s1") == "../da0s1"
    assert world.readlink("/dev/disks/my1") == "../da1"
    assert fs_of(world).statistics().collisions == 0
    world.write("/dev/devfs", "reset /dev")
    assert world.errno(world.stat, "/dev/disks") == ENOENT
    world.devices.destroy_dev(world.devices.find_device_by_name("da1"))  # type: ignore[arg-type]


def test_jailed_mounts_have_their_own_rules(world: SynthWorld) -> None:
    """What if a devfs is mounted for a jail?"""
    world.write("/dev/devfs", "add -j -n k* hide")
    world.write("/dev/devfs", "add -n z* hide")
    world.write("/dev/devfs", "apply *")
    world.mount("devfs", "/mnt", jail="")
    assert ("zero" in world.names("/mnt"), "klog" in world.names("/mnt")) == (True, False)
    assert ("zero" in world.names("/dev"), "klog" in world.names("/dev")) == (False, True)


@pytest.mark.parametrize(
    "command",
    [
        "", "nonsense", "add", "add nothing", "add -x hide", "add -n", "add -t moon hide",
        "add -n x perm 9 0 0", "add -n x perm 600 0", "add -n x perm 600 -1 0", "add link x",
        "add -n x link ''", "apply", "clear a b", "add 'x", "hide\nshow",
    ],
)  # fmt: skip
def test_bad_commands_are_einval(world: SynthWorld, command: str) -> None:
    """What if a rule is malformed?"""
    assert world.errno(world.write, "/dev/devfs", command) == EINVAL
    assert world.rules.count() == 0


def test_rules_are_listed_as_they_are_added(world: SynthWorld) -> None:
    """What if the listing is written back, rule by rule?"""
    lines = [
        "add -m '*' -n 'vn*' hide", "add -m /mnt -j -t tty show",
        "add -m '*' -n 'da*' perm 660 0 5", "add -m '*' -n da0 link 'my disk'",
    ]  # fmt: skip
    for line in lines:
        world.write("/dev/devfs", line)
    assert world.read("/dev/devfs").decode().splitlines() == lines
    again = DevfsRules()
    for line in lines:
        again.command(line)
    assert list(again) == list(world.rules)


def test_the_rules_are_limited(world: SynthWorld) -> None:
    """What if somebody adds rules without end?"""
    world.tree.set("vfs.devfs.maxrules", "3", ROOT)
    for _ in range(3):
        world.write("/dev/devfs", HIDE_VN)
    assert world.errno(world.write, "/dev/devfs", HIDE_VN) == ENOSPC
    assert world.tree.get("vfs.devfs.rules") == "3"


def test_only_root_changes_rules(world: SynthWorld) -> None:
    """What if a user opens /dev/devfs, or root opens it non-blocking?"""
    assert world.errno(world.open, "/dev/devfs", O_WRONLY, USER) == EACCES
    assert world.errno(world.open, "/dev/devfs", O_RDWR | O_NONBLOCK) == ENODEV


def test_patterns() -> None:
    """What if names have characters that mean something elsewhere?"""
    assert wild_case_cmp("vn*", "VN12")
    assert wild_case_cmp("a?c", "abc")
    assert not wild_case_cmp("a?c", "ac")
    assert not wild_case_cmp("vn", "vn0")
    assert wild_case_cmp("[x]+*", "[x]+y")
    assert parse_rule(["hide"]) == DevfsRule("hide")


# --- life ----------------------------------------------------------------------------------------


def test_two_mounts_and_ten_thousand_opens_leave_nothing(world: SynthWorld) -> None:
    """What if devices are opened all day and devfs is unmounted in the end?"""
    second = world.mount("devfs", "/mnt")
    ops = EchoOps(D.TRACKCLOSE)
    make(world, "echo", ops)
    for i in range(10_000):
        kern_close(world.open("/mnt/echo" if i & 1 else "/dev/echo", O_RDWR))
    assert ops.open_now == 0
    for mp in (second, world.mount_of("devfs")):
        world.vfs.mounts.unmount(mp)
        assert not mp.vnodes
    assert world.devices.statistics().listeners == 0
    assert world.rules.mounts == []
    make(world, "later")


def test_nodes_are_found_by_number(world: SynthWorld) -> None:
    """What if the host asks for a file by its inode number?"""
    mp = world.mount_of("devfs")
    ino = world.stat("/dev/zero").fileid
    vp = mp.ops.vfs_vget(mp, ino)
    assert vp.data.name == b"zero"
    vp.rele()
    assert world.errno(mp.ops.vfs_vget, mp, 10_000) == ENOENT
    fs = fs_of(world)
    assert mp.ops.vfs_statfs(mp).files == len(fs.nodes) == sum(1 for _ in fs.walk(fs.root))


def test_a_thousand_devices_come_and_go_quickly(world: SynthWorld) -> None:
    """What if many devices with aliases are made and destroyed: is the tree as before?"""
    fs, ops = fs_of(world), EchoOps()
    before = sorted(node.path() for node in fs.walk(fs.root))
    devs = [make(world, f"many/d{i}", ops, i) for i in range(1000)]
    for i, dev in enumerate(devs):
        world.devices.make_dev_alias(dev, f"by-number/{i}")
    assert fs.statistics().nodes == len(before) + 2002
    world.devices.destroy_by_ops(ops)
    assert sorted(node.path() for node in fs.walk(fs.root)) == before
    assert sorted(fs.nodes) == sorted(node.ino for node in fs.walk(fs.root))
    assert not any(node.links for node in fs.walk(fs.root))


def test_mount_options(world: SynthWorld) -> None:
    """What if devfs is mounted with options it does not know, or updated?"""
    assert world.errno(world.mount, "devfs", "/mnt", size="1") == EINVAL
    mp = world.mount_of("devfs")
    assert world.errno(world.vfs.mounts.update, mp, 0, {}, ROOT) == EOPNOTSUPP
    assert mp.coherence == "volatile"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["dev", "kill", "alias", "unalias", "mkdir", "rmdir", "hide", "reset"]),
        st.sampled_from(["a", "b", "d/a", "d/b", "d/e/c"]),
        st.sampled_from(["x", "d/x", "q/y"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_tree_is_always_that_of_the_list(steps: list[tuple[str, str, str]]) -> None:
    """What if devices, aliases, users' directories and rules come and go in any order?"""
    world = SynthWorld()
    fs, devices, root = fs_of(world), world.devices, world.hold("/dev")
    for step, name, alias in steps:
        dev = devices.find_device_by_name(name)
        if step == "dev":
            world.errno(make, world, name)
        elif step == "kill" and dev is not None:
            devices.destroy_dev(dev)
        elif step == "alias" and dev is not None:
            world.errno(devices.make_dev_alias, dev, alias)
        elif step == "unalias" and dev is not None:
            world.errno(devices.destroy_dev_alias, dev, alias)
        elif step == "mkdir":
            world.errno(kern_mkdir, world.vfs, root, name[:1].encode(), 0o755, ROOT)
        elif step == "rmdir":
            world.errno(kern_rmdir, world.vfs, root, name[:1].encode(), ROOT)
        elif step == "hide":
            world.rules.command(f"add -n {name} hide")
            world.rules.apply("*")
        elif step == "reset":
            world.rules.clear("*")
            world.rules.reset("*")
        check_tree(world, fs)
    world.vfs.cache.drop_nch(root)
    world.close()


def check_tree(world: SynthWorld, fs: DevfsMount) -> None:
    """Tree, tables, list of devices and what lookups and listings say must agree."""
    nodes = list(fs.walk(fs.root))
    assert sorted(fs.nodes) == sorted(node.ino for node in nodes)
    of_devices = {node.dev for node in nodes if node.dev is not None}
    assert of_devices <= set(world.devices.devices())
    for node in nodes:
        assert all(link.link_target is node and link.parent for link in node.links)
        if node is fs.root:
            continue
        assert node.parent is not None
        assert node.parent.children[node.name] is node
        empty = node.type is VType.VDIR and not node.children
        assert not empty or node.flags & DEVFS.USER_CREATED
        above, hidden = node, False
        while above.parent is not None:
            hidden = hidden or above.hidden
            above = above.parent
        found = world.errno(world.stat, "/dev/" + node.path().decode()) == 0
        assert found is not hidden
