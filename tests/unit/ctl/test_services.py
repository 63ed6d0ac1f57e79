"""Every service on a booted kernel without an event loop, on virtual time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from dfuser.boot.config import Config
from dfuser.boot.kernel import Kernel
from dfuser.ctl.hostjob import HostJobs
from dfuser.ctl.service import CtlMsg, Service
from dfuser.ctl.services import make_services
from dfuser.hw.fake import FakeHost
from dfuser.libkern.errno import (
    EBUSY,
    ECANCELED,
    EINVAL,
    EIO,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    KError,
)
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.msgkinds import initport_replyonly
from dfuser.lwkt.msgport import MSGF, LwktMsg, Port
from dfuser.vfs.hostcache import NullHostCache
from dfuser.vfs.syscalls import kern_mkdir, kern_mknod, kern_symlink
from dfuser.vfs.vnode import Vnode


class World:
    """A kernel, its services, and a port that collects replies."""

    def __init__(self, kernel: Kernel, services: list[Service]) -> None:
        self.kernel = kernel
        self.services = {service.name: service for service in services}
        self.replies: list[CtlMsg] = []
        self.port = initport_replyonly(self._reply, "test", kernel.lwkt)

    def _reply(self, port: Port, msg: LwktMsg) -> None:
        assert isinstance(msg, CtlMsg)
        msg.flags |= MSGF.DONE | MSGF.REPLY
        self.replies.append(msg)

    def send(self, port: str, cmd: str, cred: Ucred | None = None, **args: Any) -> CtlMsg:
        """Send a message and let the machine run until it is idle."""
        msg = CtlMsg(self.port, 1, cmd, args, cred or Ucred.root())
        self.kernel.in_context(self.services[port].port.sendmsg, msg)
        self.kernel.lwkt.run_until_idle()
        return msg

    def do(self, port: str, cmd: str, **args: Any) -> Any:
        """The result of a message that must succeed; it must be plain JSON."""
        msg = self.send(port, cmd, **args)
        assert msg.done
        assert msg.error == 0, msg.result
        assert json.loads(json.dumps(msg.result)) == msg.result
        return msg.result

    def fails(self, port: str, cmd: str, cred: Ucred | None = None, **args: Any) -> tuple[int, str]:
        """Error and text of a message that must fail."""
        msg = self.send(port, cmd, cred, **args)
        assert msg.done
        assert msg.error
        return msg.error, msg.result["error"]


@pytest.fixture
def world() -> Iterator[World]:
    """A booted kernel on a fake host, with every service."""
    kernel = Kernel(Config(memory=16 << 20, seed=1, ncpu=2), FakeHost(16 << 20))
    kernel.boot()
    jobs = HostJobs(kernel.lwkt, None)  # type: ignore[arg-type]
    yield World(kernel, make_services(kernel, jobs))
    kernel.stop()


def test_every_command_has_a_line_of_help(world: World) -> None:
    # What if a client shows the commands: does each say what it does?
    for service in world.services.values():
        assert service.commands()
        for name, text in service.commands().items():
            assert text.endswith("."), f"{service.name}.{name}: {text!r}"


def test_kernel(world: World) -> None:
    # What if somebody asks what runs?
    info = world.do("kernel", "info")
    assert info["cpus"] == 2
    assert info["memory_bytes"] == 16 << 20
    assert {"name": "seed", "value": "1", "origin": "default"} in info["settings"]
    assert world.do("kernel", "sync") is None
    assert "lwkt" in world.do("kernel", "statistics")
    assert world.fails("kernel", "stop")[0] == EOPNOTSUPP
    assert world.fails("kernel", "stop", lazy="yes")[0] == EINVAL


def test_sysctl(world: World) -> None:
    # What if variables are read and set from outside: the same rules as inside?
    assert world.do("sysctl", "get", name="kern.ostype")["value"] == "DragonFly"
    rows = world.do("sysctl", "list", prefix="vfs.cache")
    assert {row["name"] for row in rows} >= {"vfs.cache.numneg", "vfs.cache.numcache"}
    assert all(row["description"] for row in rows)
    answer = world.do("sysctl", "set", name="kern.maxvnodes", value="5000")
    assert answer["new"] == "5000"
    assert world.kernel.vfs.vnodes.maxvnodes == 5000
    assert "value" not in world.do("sysctl", "list", prefix="kern.ostype", values=False)[0]


@pytest.mark.parametrize(
    ("args", "errno", "text"),
    [
        ({"name": "kern.maxvnodes", "value": "many"}, EINVAL, "kern.maxvnodes=many"),
        ({"name": "kern.maxvnodes", "value": True}, EINVAL, "value must be"),
        ({"name": "kern.maxvnodes", "value": None}, EINVAL, "value must be"),
        ({"name": "kern.ostype", "value": "x"}, EPERM, "kern.ostype"),
        ({"name": "kern.nothing", "value": "1"}, ENOENT, "kern.nothing"),
        ({"name": 3, "value": "1"}, EINVAL, "name must be"),
        ({"name": "x" * 5000, "value": "1"}, EINVAL, "name must be"),
    ],
)
def test_a_bad_sysctl_value_is_one_sentence(
    world: World, args: dict[str, Any], errno: int, text: str
) -> None:
    # What if the value or the name is wrong: does the text say which?
    error, said = world.fails("sysctl", "set", **args)
    assert error == errno
    assert text in said
    assert "\n" not in said


def test_a_sysctl_is_not_for_everybody(world: World) -> None:
    # What if the peer is not root?
    error, _ = world.fails("sysctl", "set", Ucred.of(1000, 1000), name="kern.maxvnodes", value="9")
    assert error == EPERM


def test_kern_views(world: World) -> None:
    # What if a program wants what the files of /kern say?
    names = {row["name"] for row in world.do("kern", "list")}
    assert {"README", "mounts", "ctl"} <= names
    for name in sorted(names):
        assert isinstance(world.do("kern", "read", name=name), str)
    assert world.fails("kern", "read", name="nothing")[0] == ENOENT
    assert world.fails("kern", "write", name="ctl", text="frob")[0] == EINVAL
    world.do("kern", "write", name="ctl", text="sync")


def test_ps_and_ports(world: World) -> None:
    # What if the threads and ports are asked for?
    world.kernel.world.start_daemons()
    rows = world.do("ps", "list")
    assert "vnlru" in {row["comm"] for row in rows}
    assert len(world.do("ps", "list", limit=1)) == 1
    assert world.fails("ps", "list", limit=0)[0] == EINVAL
    ports = {row["name"]: row for row in world.do("ports", "list")}
    assert ports["ctl:ps"]["kind"] == "putonly"
    assert ports["ctl:ps"]["puts"] == 3


def test_ktr(world: World) -> None:
    # What if tracing is switched on, events happen, and entries are asked for?
    assert world.do("ktr", "enable", master="namecache") == 0
    world.do("vfs", "nlookup", path="/not/there")
    entries = world.do("ktr", "dump", count=10)["entries"]
    assert "namecache" in {entry["master"] for entry in entries}
    again = world.do("ktr", "wait", since=-1)
    assert again["entries"][-1]["seq"] == again["last"]
    assert world.do("ktr", "disable", master="namecache") == -1
    error, text = world.fails("ktr", "enable", master="frob")
    assert (error, "namecache" in text) == (EINVAL, True)
    assert world.fails("ktr", "dump", count="3")[0] == EINVAL


def test_a_follower_of_ktr_waits_for_the_next_entry(world: World) -> None:
    # What if nothing has happened yet: is the reply late instead of empty?
    last = world.do("ktr", "dump")["last"]
    msg = world.send("ktr", "wait", since=last)
    assert not msg.done
    world.kernel.ktr.master("testlog").mask = -1
    world.do("ktr", "enable", master="namecache")
    world.do("vfs", "nlookup", path="/nothing/here")
    clock = world.kernel.host.clock
    clock.advance(1_000_000_000)  # type: ignore[attr-defined]
    world.kernel.lwkt.run_until_idle()
    assert msg.done
    assert msg.error == 0
    assert msg.result["entries"][0]["seq"] == last + 1


def test_log(world: World) -> None:
    # What if the log is read, then awaited, and then something is logged?
    answer = world.do("log", "tail", lines=5)
    assert any("root on" in line for line in answer["lines"])
    msg = world.send("log", "wait", since=answer["seq"])
    second = world.send("log", "wait", since=answer["seq"])
    assert not msg.done
    world.kernel.log("hello there")
    world.kernel.lwkt.run_until_idle()
    for one in (msg, second):
        assert one.done
        assert "hello there" in one.result["text"]
        assert one.result["lost"] == 0
    assert world.kernel.msgbuf.statistics().listeners == 1
    assert world.fails("log", "wait", since=-1)[0] == EINVAL
    assert world.fails("log", "wait", since=1 << 40)[0] == EINVAL


def test_a_waiting_command_can_be_aborted(world: World) -> None:
    # What if nothing is ever logged again?
    seq = world.do("log", "tail")["seq"]
    msg = world.send("log", "wait", since=seq)
    world.kernel.in_context(msg.abortmsg)
    world.kernel.lwkt.run_until_idle()
    assert msg.done
    assert msg.error == ECANCELED


def test_a_waiting_command_is_replied_to_when_the_machine_stops(world: World) -> None:
    # What if the kernel is stopped while a client waits?
    seq = world.do("log", "tail")["seq"]
    msg = world.send("log", "wait", since=seq)
    world.kernel.stop()
    assert msg.done
    assert msg.error == ECANCELED
    assert "shut down" in msg.result["error"]


def test_mounts(world: World) -> None:
    # What if a file system is mounted and unmounted inside?
    before = {row["on"] for row in world.do("vfs", "mounts")}
    assert {"/", "/dev", "/proc"} <= before
    world.kernel.in_context(
        kern_mkdir, world.kernel.vfs, world.kernel.vfs.rootnch, b"new", 0o755, Ucred.root()
    )
    world.do("vfs", "mount", fstype="tmpfs", on="/new", options="size=1m")
    rows = {row["on"]: row for row in world.do("vfs", "df")}
    assert rows["/new"]["bsize"] * rows["/new"]["blocks"] == 1 << 20
    world.do("vfs", "unmount", on="/new")
    assert {row["on"] for row in world.do("vfs", "mounts")} == before
    for args in ({"fstype": "nofs", "on": "/tmp"}, {"fstype": "tmpfs", "on": "relative"}):
        assert world.fails("vfs", "mount", **args)[0]
    assert world.fails("vfs", "unmount", on="/tmp", force="no")[0] == EINVAL


def test_nlookup_tells_each_step(world: World) -> None:
    # What if one wants to see the namecache at work?
    kernel = world.kernel
    root = Ucred.root()
    kernel.in_context(kern_symlink, kernel.vfs, kernel.vfs.rootnch, b"l", b"/tmp/x", root)
    answer = world.do("vfs", "nlookup", path="/l")
    assert [step["name"] for step in answer["steps"]] == ["l", "tmp", "x"]
    link, crossing, missing = answer["steps"]
    assert link["target"] == "/tmp/x"
    assert crossing["crossed"]
    assert (missing["before"], missing["after"]) == ("absent", "negative")
    assert answer["error"] == ENOENT
    again = world.do("vfs", "nlookup", path="/tmp/x")
    assert again["steps"][-1]["before"] == "negative"
    dots = world.do("vfs", "nlookup", path="/tmp/../tmp")
    assert [step["name"] for step in dots["steps"]] == ["tmp", "..", "tmp"]
    assert dots["error"] == 0


def test_nlookup_of_a_loop_and_of_nonsense(world: World) -> None:
    # What if links go round, or the path is none?
    kernel = world.kernel
    root = Ucred.root()
    kernel.in_context(kern_symlink, kernel.vfs, kernel.vfs.rootnch, b"round", b"round", root)
    answer = world.do("vfs", "nlookup", path="/round")
    assert answer["error_name"] == "ELOOP"
    assert len(answer["steps"]) == 33
    for path in ("", "relative", "/nul\0", 3, None):
        assert world.fails("vfs", "nlookup", path=path)[0] == EINVAL
    assert world.fails("vfs", "nlookup", path="/", uid="root")[0] == EINVAL


def test_nlookup_is_the_walk_of_the_kernel(world: World) -> None:
    # What if the verb had rules of its own: would its limits and figures be the kernel's?
    before = world.do("vfs", "nlookup", path="/tmp")["nchstats"]
    longest = "/" + "x/" * 510 + "yy"
    assert len(longest) == 1023
    assert world.do("vfs", "nlookup", path=longest)["error_name"] == "ENOENT"
    for path in (longest + "z", longest + "zz", "/" * 5000):
        assert world.do("vfs", "nlookup", path=path)["error_name"] == "ENAMETOOLONG"
    after = world.do("vfs", "nlookup", path="/tmp")["nchstats"]
    assert after["longhits"] - before["longhits"] == 1
    assert after["longmiss"] - before["longmiss"] == 1
    nothing = world.do("vfs", "nlookup", path="/" + "./" * 500)
    assert (len(nothing["steps"]), nothing["more"]) == (500, 0)


@pytest.mark.parametrize(
    ("path", "create", "delete", "rename", "opened"),
    [
        ("/tmp/none", "", "ENOENT", "ENOENT", "ENOENT"),
        ("/file", "EEXIST", "", "", ""),
        ("/file/", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"),
        ("/tmp/.", "EEXIST", "EINVAL", "EINVAL", ""),
        ("/tmp/..", "EEXIST", "ENOTEMPTY", "EINVAL", ""),
        ("/", "EEXIST", "EACCES", "EACCES", ""),
        ("/dangling", "EEXIST", "", "", "ENOENT"),
    ],
)
def test_nlookup_for_a_purpose(
    world: World, path: str, create: str, delete: str, rename: str, opened: str
) -> None:
    # What if one asks what the last component may be for each use?
    kernel = world.kernel
    for make, *args in ((kern_mknod, b"file", 0o100644, 0, 0), (kern_symlink, b"dangling", b"no")):
        kernel.in_context(make, kernel.vfs, kernel.vfs.rootnch, *args, Ucred.root())
    wanted = {"create": create, "delete": delete, "rename": rename, "open": opened}
    got = {
        intent: world.do("vfs", "nlookup", path=path, intent=intent)["error_name"]
        for intent in wanted
    }
    assert got == wanted
    assert world.fails("vfs", "nlookup", path=path, intent="frob")[0] == EINVAL


def test_nlookup_as_somebody_else(world: World) -> None:
    # What if a directory is not for everybody?
    kernel = world.kernel
    kernel.in_context(kern_mkdir, kernel.vfs, kernel.vfs.rootnch, b"mine", 0o700, Ucred.root())
    answer = world.do("vfs", "nlookup", path="/mine/x", uid=1000, gid=1000)
    assert answer["error_name"] == "EACCES"
    assert world.do("vfs", "nlookup", path="/mine/x")["error_name"] == "ENOENT"


def test_the_socket_and_kern_ctl_share_their_commands(world: World) -> None:
    # What if a directory has a name that a shell would split, and a command is added later?
    kernel = world.kernel
    root = Ucred.root()
    kernel.in_context(kern_mkdir, kernel.vfs, kernel.vfs.rootnch, b"a 'b", 0o755, root)
    world.do("vfs", "mount", fstype="tmpfs", on="/a 'b", source="# one", options="size=1m")
    row = next(row for row in world.do("vfs", "mounts") if row["on"] == "/a 'b")
    assert row["source"] == "# one"
    error, text = world.fails("vfs", "mount", fstype="tmpfs", on="/a 'b", options="update,size=x")
    assert (error, "size" in text) == (EINVAL, True)
    world.do("kern", "write", name="ctl", text='umount "/a \'b"')
    kernel.world.commands.add("hello", "hello", lambda words, cred: "hi")
    assert world.do("kern", "write", name="ctl", text="hello").strip() == "hi"
    assert world.fails("vfs", "unmount", on="/a 'b")[0] == EINVAL


class _Listener(NullHostCache):
    """A host that counts what it is told."""

    def __init__(self) -> None:
        self.names: list[bytes] = []

    def entry_changed(self, dvp: Vnode, name: bytes) -> None:
        self.names.append(name)


def test_who_mounts_waits_for_the_host(world: World) -> None:
    # What if the host has cached the directory that was mounted on?
    host = world.kernel.vfs.hostcache = _Listener()
    world.kernel.in_context(
        kern_mkdir, world.kernel.vfs, world.kernel.vfs.rootnch, b"new", 0o755, Ucred.root()
    )
    host.names.clear()
    mounting = world.send("vfs", "mount", fstype="tmpfs", on="/new")
    unmounting = world.send("kern", "write", name="ctl", text="umount /new")
    assert host.names == [b"new", b"new"]
    assert mounting.settle == unmounting.settle == host.settle
    assert world.send("vfs", "mounts").settle is None
    world.kernel.vfs.hostcache = None
    assert world.send("vfs", "mount", fstype="tmpfs", on="/new").settle is None


def test_vnodes_are_cut_at_the_limit(world: World) -> None:
    # What if there are more vnodes than one wants to see?
    answer = world.do("vfs", "vnodes", limit=1)
    assert len(answer["rows"]) == 1
    assert answer["more"]
    everything = world.do("vfs", "vnodes", limit=10_000)
    assert len(everything["rows"]) == world.kernel.vfs.vnodes.statistics().numvnodes
    assert not everything["more"]
    assert world.do("vfs", "ncache")["numcache"] > 0


def test_ddb(world: World) -> None:
    # What if the debugger is asked from outside?
    assert any(line.startswith("show threads") for line in world.do("ddb", "run", line="help"))
    assert isinstance(world.do("ddb", "run", line="show threads"), list)
    assert world.fails("ddb", "run", line="frobnicate")[0] == ENOENT
    assert world.fails("ddb", "run", line=["show"])[0] == EINVAL


async def test_a_host_job_is_shared_and_its_end_wakes_all(world: World) -> None:
    # What if two clients ask for the same unmount, and it fails; and then a third asks again?
    calls: list[bool] = []
    gate = trio.Event()

    async def unmount(lazy: bool) -> None:
        calls.append(lazy)
        await gate.wait()
        raise KError(EBUSY, "held by sh (7)")

    async with trio.open_nursery() as nursery:
        jobs = HostJobs(world.kernel.lwkt, nursery)
        for service in make_services(world.kernel, jobs, unmount):
            world.services[service.name] = service
        first, second = world.send("kernel", "stop"), world.send("kernel", "stop")
        await trio.testing.wait_all_tasks_blocked()
        assert not first.done
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        world.kernel.lwkt.run_until_idle()
        for msg in (first, second):
            assert (msg.error, msg.result) == (EBUSY, {"error": "held by sh (7)"})
        assert calls == [False]
        third = world.send("kernel", "stop", lazy=True)
        await trio.testing.wait_all_tasks_blocked()
        world.kernel.lwkt.run_until_idle()
        assert third.error == EBUSY
        assert calls == [False, True]


async def test_a_host_job_that_breaks_is_an_error_of_its_command(world: World) -> None:
    # What if the host's tool is missing?
    async def unmount(lazy: bool) -> None:
        raise FileNotFoundError("fusermount3")

    async with trio.open_nursery() as nursery:
        jobs = HostJobs(world.kernel.lwkt, nursery)
        for service in make_services(world.kernel, jobs, unmount):
            world.services[service.name] = service
        msg = world.send("kernel", "stop")
        await trio.testing.wait_all_tasks_blocked()
        world.kernel.lwkt.run_until_idle()
        assert msg.error == EIO
        assert "fusermount3" in msg.result["error"]
