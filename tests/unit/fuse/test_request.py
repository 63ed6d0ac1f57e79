"""The way of a request: errors, busy and stopped CPUs, limits, the end of a session."""

from __future__ import annotations

import errno
from typing import Any

import pyfuse3
import pytest

from dfuser.fuse.request import HostError, Parked
from dfuser.fuse.stock.operations import StockOperations
from dfuser.libkern.errno import EAGAIN, EINTR, ENOATTR, ERESTART, KError, Panic
from dfuser.lwkt.block import Block

from .conftest import Bridge, Ctx


@pytest.mark.parametrize(
    ("raised", "number", "reported"),
    [
        (KError(ENOATTR), errno.ENODATA, False),
        (KError(EAGAIN), errno.EAGAIN, False),
        (KError(EINTR), errno.EINTR, False),
        (KError(ERESTART), errno.EINTR, False),
        (HostError(errno.EXDEV), errno.EXDEV, False),
        (OSError(errno.ENOSPC, "host"), errno.ENOSPC, True),
        (OSError("no number"), errno.EIO, True),
        (OSError(513, "not for Linux"), errno.EIO, True),
        (MemoryError(), errno.ENOMEM, True),
        (ZeroDivisionError(), errno.EIO, True),
        (Panic("broken"), errno.EIO, True),
    ],
)
def test_what_is_raised_becomes_an_errno(
    bridge: Bridge, raised: BaseException, number: int, reported: bool
) -> None:
    """What if a core raises: which number does the host get, and is it reported?"""
    assert bridge.session.context.errno_of("read", raised) == number
    assert bool(bridge.reports) is reported
    assert bool(bridge.panics) is isinstance(raised, Panic)


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit()])
def test_what_ends_the_program_is_not_an_answer(bridge: Bridge, raised: BaseException) -> None:
    """What if the program is told to end while a request runs?"""
    with pytest.raises(type(raised)):
        bridge.session.context.errno_of("read", raised)


def test_every_handler_of_pyfuse3_is_ours() -> None:
    """What if pyfuse3 gains a request: do we serve them all?"""
    handlers = {
        name for name in dir(pyfuse3.Operations)
        if not name.startswith("_") and callable(getattr(pyfuse3.Operations, name))
    }  # fmt: skip
    assert handlers - {"init"} <= set(vars(StockOperations))


class Cur:
    """A thread in the middle of a critical section."""

    critcount = 1


def test_a_cpu_in_a_critical_section(bridge: Bridge, ctx: Ctx) -> None:
    """What if the CPU of a caller spins in a critical section: another one serves; or none can?"""
    cpus = bridge.kernel.lwkt.cpus
    busy: Any = Cur()
    cpus[ctx.pid % 2].curthread = busy
    td = bridge.session.context.enter(ctx)
    assert td.cpu is cpus[1 - ctx.pid % 2]
    bridge.session.context.leave(td)
    cpus[1 - ctx.pid % 2].curthread = busy
    with pytest.raises(Block):
        bridge.session.context.enter(ctx)
    for cpu in cpus:
        cpu.curthread = None


def test_stopped_cpus(bridge: Bridge, ctx: Ctx) -> None:
    """What if the kernel has panicked: is a request refused at once?"""
    for cpu in bridge.kernel.lwkt.cpus:
        cpu.stop()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        bridge.call(bridge.ops.getattr(1, ctx))
    assert caught.value.errno == errno.EIO
    for cpu in bridge.kernel.lwkt.cpus:
        cpu.restart()


async def nothing() -> int:
    """A wait that is over."""
    return 0


async def test_no_wait_begins_when_the_session_ends(bridge: Bridge) -> None:
    """What if a request would have to wait while the session closes, or too many wait already?"""
    context = bridge.session.context
    caller: Any = Ctx()
    context.max_parked = 0
    for _ in range(2):
        with pytest.raises(HostError) as caught:
            await context.park("read", caller, Parked(), nothing, lambda: None)
        assert caught.value.number == errno.EAGAIN
        context.max_parked = 100
        context.close()


def test_full_credentials_have_the_groups(bridge: Bridge) -> None:
    """What if the groups of a caller matter: are they read, and is the primary group first?"""
    import os

    caller = Ctx(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())
    cred = bridge.session.context.full_cred(caller)
    assert cred.groups[0] == os.getgid()
    assert set(cred.groups) >= set(os.getgroups())
    assert bridge.session.context.full_cred(Ctx(pid=0)).groups == (1000,)
