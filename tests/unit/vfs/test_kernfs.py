"""kernfs: views as text and JSON, the trace masks, and commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs
import pytest

from dfuser.libkern.errno import (
    EACCES,
    EBUSY,
    EEXIST,
    EINVAL,
    EMSGSIZE,
    ENODEV,
    ENOENT,
    ENOTDIR,
    EPERM,
    KError,
)
from dfuser.libkern.fcntl import F_POSIX, F_RDLCK, F_WRLCK, O_RDWR, O_WRONLY
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.callout import Callout
from dfuser.lwkt.synch import tsleep
from dfuser.vfs.kernfs.registry import KernView, KernViews, cell, plain, table
from dfuser.vfs.lockf import OFF_MAX, Lockf, LockfRange
from dfuser.vfs.mountflags import MNT
from dfuser.vfs.syscalls import (
    kern_close,
    kern_create,
    kern_lookup,
    kern_read,
    kern_unlink,
    kern_write,
)
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps

from .synth_world import ROOT, USER, SynthWorld


@pytest.fixture
def world() -> Iterator[SynthWorld]:
    made = SynthWorld()
    yield made
    made.close()


def rows(world: SynthWorld, view: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(world.read(f"/kern/{view}.json"))["rows"]
    return found


# --- the tree ----------------------------------------


def test_every_view_has_a_twin_and_can_be_read(world: SynthWorld) -> None:
    """What if every file of /kern is read?"""
    seen = set()
    for path, attributes in world.walk("/kern"):
        assert attributes.type is VType.VREG
        text = world.read(path).decode()
        name = path.removeprefix("/kern/")
        if name.endswith(".json"):
            assert json.loads(text)["view"] == name.removesuffix(".json")
            assert attributes.mode == 0o444
        seen.add(name)
    for view in world.views:
        assert {view.name, view.name + ".json"} <= seen
    assert len(seen) == 2 * world.views.count()


def test_the_readme_lists_everything(world: SynthWorld) -> None:
    """What if somebody reads README first?"""
    lines = world.read("/kern/README").decode().splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert listed == {view.name for view in world.views}
    assert all(len(line) < 100 for line in lines)


def test_views_are_live(world: SynthWorld) -> None:
    """What if a file system is mounted between two readings?"""
    assert "/mnt" not in [row["on"] for row in rows(world, "mounts")]
    world.mount("sysctlfs", "/mnt")
    assert "/mnt" in [row["on"] for row in rows(world, "mounts")]
    assert b"sysctlfs on /mnt (sysctlfs, local)\n" in world.read("/kern/mounts")


def test_views_come_and_go(world: SynthWorld) -> None:
    """What if another room registers a view, and takes it away again?"""
    world.views.add_lines("extra", "more", lambda: ("one", "two"))
    assert world.read("/kern/extra") == b"one\ntwo\n"
    assert json.loads(world.read("/kern/extra.json"))["lines"] == ["one", "two"]
    world.views.unregister("extra")
    assert world.errno(world.read, "/kern/extra") == ENOENT
    assert "extra" not in world.names("/kern")
    assert world.errno(world.views.unregister, "extra") == ENOENT


# --- what the views say ----------------------------------------


def test_vnodes_and_names_agree_with_the_vfs(world: SynthWorld) -> None:
    """What if the views are compared with the structures?"""
    world.errno(world.stat, "/dev/not-there")
    shown = rows(world, "vnodes")
    assert len(shown) == sum(1 for _ in world.vfs.vnodes)
    assert {(r["mount"], r["ino"]) for r in shown} == {
        (vp.mount.index if vp.mount else 0, vp.ino) for vp in world.vfs.vnodes
    }
    names = rows(world, "ncache")
    assert len(names) == world.vfs.cache.numcache + len(world.vfs.mounts)
    (negative,) = [r for r in names if r["path"] == "/dev/not-there"]
    assert (negative["state"], negative["ino"]) == ("negative", 0)


def test_threads_cpus_tokens_callouts(world: SynthWorld) -> None:
    """What if a thread sleeps and a timer is armed: what do the views of LWKT say?"""

    async def daemon() -> None:
        Callout(daemon).reset(50)
        await tsleep("forever", 0, "waiting", 0)

    td = world.lwkt.create(daemon, name="daemon", pri=12, cpu=1)
    world.lwkt.run_until_idle()
    (row,) = [r for r in rows(world, "threads") if r["tid"] == td.tid]
    assert (row["name"], row["wmesg"], row["pri"], row["cpu"]) == ("daemon", "waiting", 12, 1)
    assert len(rows(world, "cpus")) == 2
    assert "vnode" in [r["name"] for r in rows(world, "tokens")]
    (timer,) = rows(world, "callouts")
    assert (timer["cpu"], timer["ticks_left"]) == (1, 50)
    assert "daemon" in timer["func"]
    assert [r["comm"] for r in rows(world, "procs") if r["tid"] == td.tid] == ["daemon"]


def test_advisory_locks_are_shown(world: SynthWorld) -> None:
    """What if a file is locked?"""

    class Owner:
        pid = 77

    with world.at("/dev/null") as nd:
        assert nd.vp is not None
        nd.vp.lockf = Lockf()
        nd.vp.lockf.ranges.append(LockfRange(Owner(), F_WRLCK, F_POSIX, 0, 9))
        (lock,) = rows(world, "locks")
        assert (lock["pid"], lock["type"], lock["start"], lock["end"]) == (77, "write", 0, 9)
        assert (lock["state"], lock["ino"]) == ("held", nd.vp.ino)
        assert (lock["kind"], lock["file"]) == ("posix", "/dev/null")
        nd.vp.lockf.blocked.append(LockfRange(Owner(), F_RDLCK, 0, 5, OFF_MAX))
        waits = rows(world, "locks")[1]
        assert (waits["state"], waits["kind"], waits["type"]) == ("waits", "flock", "read")
        assert waits["end"] == OFF_MAX
        nd.vp.lockf = None


def test_locks_of_a_file_without_a_name(world: SynthWorld) -> None:
    """What if the name of a locked file was removed?"""
    mnt = world.hold("/mnt")
    world.vfs.fstypes.register("tmpfs", TmpfsVfsOps)
    mount = world.mount("tmpfs", "/mnt")
    _, file = kern_create(world.vfs, mount.ncmountpt, b"f", 0o644, O_RDWR, ROOT)
    file.vp.lockf = Lockf()
    file.vp.lockf.ranges.append(LockfRange(None, F_WRLCK, 0, 0, 9))
    assert rows(world, "locks")[0]["file"] == "/mnt/f"
    kern_unlink(world.vfs, mount.ncmountpt, b"f", ROOT)
    (lock,) = rows(world, "locks")
    assert (lock["file"], lock["pid"], lock["kind"]) == ("", -1, "flock")
    file.vp.lockf = None
    file.drop()
    world.vfs.cache.drop_nch(mnt)


def test_devices_and_log(world: SynthWorld) -> None:
    """What if somebody wants the numbers of devices, and the log without eating it?"""
    world.msgbuf.kprintf("hello")
    null = next(r for r in rows(world, "devices") if r["name"] == "null")
    assert (null["major"], null["minor"], null["mode"]) == (0, 2, "0666")
    assert world.read("/kern/dmesg") == b"hello\n" == world.read("/kern/dmesg")


def test_the_counters_are_all_there(world: SynthWorld) -> None:
    """What if a monitor reads stats as text and as JSON?"""
    text = dict(line.split(" ", 1) for line in world.read("/kern/stats").decode().splitlines())
    assert text["mounts.mounts"] == "5"
    assert text["procs.procs"] == "1"
    stats = json.loads(world.read("/kern/stats.json"))["stats"]
    assert stats["vnodes"]["maxvnodes"] == world.vfs.vnodes.maxvnodes
    assert "goodhits" in stats["ncache"]["nchstats"]


def test_a_view_without_rows_has_its_head(world: SynthWorld) -> None:
    """What if there is nothing to show?"""
    assert world.read("/kern/locks").split()[:2] == [b"MOUNT", b"INO"]


# --- printing ----------------------------------------


class Row(NamedTuple):
    """A record of the test."""

    name: bytes
    number: int


@attrs.frozen
class Rec:
    """Another kind of record."""

    name: str
    inner: Row


def test_tables_are_aligned_and_parseable() -> None:
    """What if values are empty, long, binary, or have blanks?"""
    lines = table([Row(b"a b\n", 5)._asdict(), Row(b"", 12345)._asdict()])
    assert lines == ["NAME       NUMBER", "a\\x20b\\x0a      5", "-           12345"]
    assert all(len(line.split()) == 2 for line in lines)
    (_, line) = table([{"pid": 1, "name": "softclock 0\n"}])
    assert line.split(None, 1) == ["1", "softclock 0\\x0a"]
    assert table([]) == []
    assert cell(None) == "-"
    assert plain({b"k": [Rec("x", Row(b"\xff", 1)), VType.VDIR, {1}, None, 1.5]}) == {
        "k": [{"name": "x", "inner": {"name": "\\xff", "number": 1}}, "VDIR", [1], None, 1.5]
    }


def test_long_views_are_cut_and_say_so(world: SynthWorld) -> None:
    """What if a view has more rows than the limit?"""
    world.views.add_rows("many", "rows", lambda: (Row(b"x", i) for i in range(10**9)))
    world.tree.set("vfs.kernfs.limit", "5", ROOT)
    lines = world.read("/kern/many").decode().splitlines()
    assert len(lines) == 7
    assert lines[-1].startswith("# more than 5 rows")
    assert json.loads(world.read("/kern/many.json"))["omitted"] is True


@pytest.mark.parametrize(
    ("name", "error"),
    [("mounts", EEXIST), ("", EINVAL), ("a/b", EINVAL), ("x.json", EINVAL)],
)
def test_names_of_views(world: SynthWorld, name: str, error: int) -> None:
    """What if a view has a name that is taken or cannot be a file?"""
    assert world.errno(world.views.register, KernView(name, "x")) == error
    assert world.errno(world.views.add_statistics, "vnodes", dict) == EEXIST


def test_something_that_is_no_record() -> None:
    """What if a view gives rows that are no records?"""
    views = KernViews()
    views.add_rows("odd", "x", lambda: [1, 2])
    view = views.find("odd")
    assert view is not None
    with pytest.raises(KError) as err:
        views.render(view)
    assert err.value.errno == EINVAL


# --- trace masks ----------------------------------------


def test_trace_masters_are_switched(world: SynthWorld) -> None:
    """What if tracing is switched on, something happens, and it is switched off?"""
    world.write("/kern/ktrmask", "namecache -1\n")
    assert b"namecache -1\n" in world.read("/kern/ktrmask")
    world.stat("/dev/zero")
    assert b"namecache_resolve" in world.read("/kern/ktr")
    world.write("/kern/ktrmask", "* 0")
    world.write("/kern/ktrmask", "clear")
    assert world.read("/kern/ktr") == b""
    assert world.tree.get("debug.ktr.namecache_enable") == "0"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("nothing 1", ENOENT), ("tokens", EINVAL), ("tokens many", EINVAL),
        ("tokens 0x1ffffffff", EINVAL), ("", EINVAL), ("a 1\nb 2", EINVAL),
    ],
)  # fmt: skip
def test_bad_masks(world: SynthWorld, command: str, error: int) -> None:
    """What if a mask is malformed?"""
    assert world.errno(world.write, "/kern/ktrmask", command) == error
    assert all(master.mask == 0 for master in world.ktr.masters.values())


# --- commands ----------------------------------------


def test_mount_and_umount_by_writing(world: SynthWorld) -> None:
    """What if a file system is mounted and unmounted through /kern/ctl?"""
    world.write("/kern/ctl", "mount -t sysctlfs -o noexec,uid=5 tree /mnt\n")
    assert b"tree on /mnt (sysctlfs, local, noexec)\n" in world.read("/kern/mounts")
    assert world.stat("/mnt/kern").uid == 5
    world.write("/kern/ctl", "umount /mnt\n")
    assert world.names("/mnt") == []
    world.write("/kern/ctl", "sync\n")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("", EINVAL), ("dance", EINVAL), ("mount", EINVAL), ("mount a", EINVAL),
        ("mount -x a /mnt", EINVAL), ("mount -t", EINVAL), ("mount a relative", EINVAL),
        ("mount -t nofs a /mnt", ENODEV), ("mount -t sysctlfs a /nowhere", ENOENT),
        ("mount -t sysctlfs a /kern/README", ENOTDIR), ("mount -t sysctlfs a /kern", EPERM),
        ("mount -t sysctlfs -o red a /mnt", EINVAL), ("umount", EINVAL), ("umount /mnt", EINVAL),
        ("umount /", EINVAL), ("umount /nowhere", ENOENT), ("umount /kern", EBUSY),
        ("sync now", EINVAL), ("mount 'a /mnt", EINVAL), ("sync\nsync", EINVAL),
    ],
)  # fmt: skip
def test_bad_commands(world: SynthWorld, command: str, error: int) -> None:
    """What if a command is unknown, malformed, or refused by what it calls?"""
    mounts = len(world.vfs.mounts)
    assert world.errno(world.write, "/kern/ctl", command) == error
    assert len(world.vfs.mounts) == mounts


def test_the_log_says_what_was_wrong(world: SynthWorld) -> None:
    """What if only the number of an error came back: where does one read what was wrong?"""
    assert world.errno(world.write, "/kern/ctl", "mount -t sysctlfs -o red a /mnt\n") == EINVAL
    assert world.errno(world.write, "/kern/ctl", "umount /nowhere") == ENOENT
    (line,) = (line for line in world.msgbuf.text().splitlines() if "ctl:" in line)
    assert line.startswith("<5>ctl: 'mount -t sysctlfs -o red a /mnt': ")
    assert "red" in line.partition("': ")[2]


def test_commands_are_roots(world: SynthWorld) -> None:
    """What if a user writes to ctl, or owns the file but not the right?"""
    assert world.errno(world.open, "/kern/ctl", O_WRONLY, USER) == EACCES
    world.mount("kernfs", "/mnt", uid="1000", gid="100")
    assert world.errno(world.write, "/mnt/ctl", "mount -t sysctlfs a /mnt2", USER) == EPERM
    assert world.errno(world.write, "/mnt/ctl", "umount /proc", USER) == EPERM
    assert world.errno(world.write, "/mnt/ktrmask", "* 1", USER) == EPERM


def test_a_forced_umount(world: SynthWorld) -> None:
    """What if a file system in use is unmounted with -f?"""
    world.mount("sysctlfs", "/mnt")
    file = world.open("/mnt/kern/ostype")
    assert world.errno(world.write, "/kern/ctl", "umount /mnt") == EBUSY
    world.write("/kern/ctl", "umount -f /mnt")
    assert world.names("/mnt") == []
    kern_close(file)


def test_updates_go_to_the_file_system(world: SynthWorld) -> None:
    """What if a mount that cannot be updated is updated, or what is no mount?"""
    assert world.errno(world.write, "/kern/ctl", "mount -u -o ro /proc") == 45
    assert world.errno(world.write, "/kern/ctl", "mount -u -o ro /mnt") == EINVAL
    assert not world.mount_of("procfs").flag & MNT.RDONLY


def test_other_rooms_add_commands(world: SynthWorld) -> None:
    """What if boot adds a command, whose answer is read from the same open?"""

    def hello(words: list[str], cred: Ucred) -> str | None:
        return f"hello {' '.join(words)} from {cred.uid}\n"

    world.commands.add("hello", "hello [words]", hello)
    assert b"hello [words]\n" in world.read("/kern/ctl")
    file = world.open("/kern/ctl", O_RDWR)
    kern_write(file, 0, b"hello 'big world'\n")
    assert bytes(kern_read(file, 0, 100)) == b"hello big world from 0\n"
    kern_close(file)
    assert world.errno(world.commands.add, "sync", "x", hello) == EEXIST


def test_twins_take_no_commands(world: SynthWorld) -> None:
    """What if somebody writes to ctl.json, or a name that is not text?"""
    assert world.errno(world.write, "/kern/ctl.json", "sync") == EINVAL
    assert world.errno(world.write, "/kern/ctl", b"\xff") == EINVAL
    assert world.errno(world.write, "/kern/ctl", b"sync" + b" " * 8192) == EMSGSIZE
    place = world.hold("/kern")
    for name in (b"\xff", b".json", b"ctl.json.json"):
        assert kern_lookup(world.vfs, place, name, ROOT) is None
    world.vfs.cache.drop_nch(place)


def test_ten_thousand_readings_leave_nothing(world: SynthWorld) -> None:
    """What if a monitor reads a view all day?"""
    world.read("/kern/version")
    mp = world.mount_of("kernfs")
    vnodes = len(mp.vnodes)
    for _ in range(10_000):
        world.read("/kern/version")
    stats = mp.data.statistics()
    assert (stats.opens, stats.content_bytes, len(mp.vnodes)) == (0, 0, vnodes)
