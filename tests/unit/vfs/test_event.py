from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfuser.libkern.errno import EOPNOTSUPP, KError
from dfuser.libkern.klist import (
    EV_EOF,
    EV_NODATA,
    EV_ONESHOT,
    EVFILT_PROC,
    EVFILT_READ,
    EVFILT_VNODE,
    EVFILT_WRITE,
    NOTE_ATTRIB,
    NOTE_DELETE,
    NOTE_EXTEND,
    NOTE_REVOKE,
    NOTE_WRITE,
)
from dfuser.vfs.event import NOTE_VNODE_ALL, VnodeKnote, vn_knote, vn_kqfilter


class FakeVnode:
    """A vnode as far as events go: a list, and a size."""

    def __init__(self) -> None:
        self.klist: Any = None
        self.size = 0
        use = SimpleNamespace(
            vop_kqfilter=vn_kqfilter, vop_getattr=lambda vp: SimpleNamespace(size=vp.size)
        )
        self.ops = SimpleNamespace(use=use)


def watch(vp: FakeVnode, filter_: int, mask: int, **kw: Any) -> tuple[VnodeKnote, list[int]]:
    told: list[int] = []
    kn = VnodeKnote(vp, filter_, mask, lambda note: told.append(note.fflags), **kw)  # type: ignore[arg-type]
    kn.attach()
    return kn, told


def test_no_watchers() -> None:
    # What if nobody watches: does a change make a list?
    vp = FakeVnode()
    vn_knote(vp, NOTE_WRITE)  # type: ignore[arg-type]
    assert vp.klist is None


def test_only_hints_asked_for() -> None:
    # What if a watcher wants writes and removals: is he told of other changes?
    vp = FakeVnode()
    kn, told = watch(vp, EVFILT_VNODE, NOTE_WRITE | NOTE_DELETE)
    vn_knote(vp, NOTE_ATTRIB)  # type: ignore[arg-type]
    assert told == []
    vn_knote(vp, NOTE_WRITE | NOTE_EXTEND)  # type: ignore[arg-type]
    vn_knote(vp, NOTE_DELETE)  # type: ignore[arg-type]
    assert told == [NOTE_WRITE, NOTE_WRITE | NOTE_DELETE]
    assert kn.take() == NOTE_WRITE | NOTE_DELETE
    assert not kn.event(0)
    kn.detach()
    kn.detach()
    vn_knote(vp, NOTE_WRITE)  # type: ignore[arg-type]
    assert len(told) == 2


def test_read_filter_follows_the_offset() -> None:
    # What if a reader stands before, at and behind the end of the file?
    vp = FakeVnode()
    at = [0]
    kn, told = watch(vp, EVFILT_READ, 0, offset=lambda: at[0])
    assert not kn.event(0)
    vp.size = 10
    vn_knote(vp, NOTE_WRITE)  # type: ignore[arg-type]
    assert (len(told), kn.data) == (1, 10)
    at[0] = 10
    assert not kn.event(0)
    vp.size = 4
    assert kn.event(0)
    assert kn.data == -6


def test_write_filter_is_always_ready() -> None:
    # What if somebody waits until he may write to a file?
    kn, _ = watch(FakeVnode(), EVFILT_WRITE, 0)
    assert kn.event(0)


@pytest.mark.parametrize("filter_", [EVFILT_VNODE, EVFILT_READ, EVFILT_WRITE])
def test_revoke_ends_every_watch(filter_: int) -> None:
    # What if the vnode is taken away: does each kind of watcher see the end?
    vp = FakeVnode()
    kn, told = watch(vp, filter_, NOTE_VNODE_ALL)
    vn_knote(vp, NOTE_REVOKE)  # type: ignore[arg-type]
    assert len(told) == 1
    assert kn.flags & (EV_EOF | EV_NODATA) == EV_EOF | EV_NODATA
    assert bool(kn.flags & EV_ONESHOT) is (filter_ != EVFILT_VNODE)


def test_other_filters_are_refused() -> None:
    # What if a filter for processes is hung on a file?
    vp = FakeVnode()
    with pytest.raises(KError) as caught:
        watch(vp, EVFILT_PROC, 0)
    assert caught.value.errno == EOPNOTSUPP
    assert vp.klist is None
