"""Limits, modes and open flags: DragonFly's numbers and the ways between spellings."""

from __future__ import annotations

import os
import stat as host_stat

from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern import fcntl, param, stat
from dfuser.libkern.stat import VType


def test_limits() -> None:
    # What if a limit was taken from Linux?
    assert (param.NAME_MAX, param.MAXPATHLEN, param.MAXSYMLINKS) == (255, 1024, 32)
    assert (param.LINK_MAX, param.MAXBSIZE, param.PAGE_SIZE) == (32767, 65536, 4096)
    assert (param.HZ, param.NSEC_PER_TICK) == (100, 10_000_000)


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 20))
def test_rounding(x: int, y: int) -> None:
    # What if rounding is off by one at a multiple?
    assert param.rounddown(x, y) <= x <= param.roundup(x, y)
    assert param.roundup(x, y) - param.rounddown(x, y) in (0, y)
    assert param.howmany(x, y) * y == param.roundup(x, y)
    assert param.trunc_page(x) % 4096 == param.round_page(x) % 4096 == 0
    assert param.btoc(x) == param.round_page(x) >> 12
    assert param.dbtob(param.btodb(x)) == x - x % 512
    assert param.powerof2(x) == (x.bit_count() <= 1)


def test_modes_are_the_hosts() -> None:
    # What if a mode had to be translated at the FUSE edge after all?
    for name in ("S_IFMT", "S_IFDIR", "S_IFREG", "S_IFLNK", "S_IFSOCK", "S_IFIFO", "S_IFCHR",
                 "S_IFBLK", "S_ISUID", "S_ISGID", "S_ISVTX", "S_IRWXU"):  # fmt: skip
        if name != "S_IFMT":
            assert getattr(stat, name) == getattr(host_stat, name)
    assert host_stat.S_IFMT(stat.S_IFMT | 0o777) == stat.S_IFMT


def test_vtypes_and_formats() -> None:
    # What if a type changed on its way through a mode or a directory entry?
    for vtype in VType:
        if vtype is not VType.VBAD:
            mode = stat.makeimode(vtype, 0o644)
            assert stat.iftovt(mode) is vtype
            assert stat.vtype_to_dt(vtype) == mode >> 12
    assert stat.iftovt(stat.S_IFWHT) is VType.VNON
    assert stat.iftovt(0o170000) is VType.VBAD
    assert stat.vtype_to_dt(VType.VBAD) == stat.DT_UNKNOWN
    assert stat.vtype_to_dt(VType.VDIR) == stat.DT_DIR == 4
    assert [t.name for t in VType] == [
        "VNON", "VREG", "VDIR", "VBLK", "VCHR", "VLNK", "VSOCK", "VFIFO", "VBAD",
    ]  # fmt: skip


def test_type_predicates() -> None:
    # What if a predicate looked at one bit of the format only?
    predicates = {
        stat.S_IFDIR: stat.S_ISDIR,
        stat.S_IFREG: stat.S_ISREG,
        stat.S_IFLNK: stat.S_ISLNK,
        stat.S_IFCHR: stat.S_ISCHR,
        stat.S_IFBLK: stat.S_ISBLK,
        stat.S_IFIFO: stat.S_ISFIFO,
        stat.S_IFSOCK: stat.S_ISSOCK,
    }
    for form in predicates:
        assert [f for f, is_a in predicates.items() if is_a(form | 0o777)] == [form]


@given(st.sampled_from([stat.vttoif(t) for t in VType][1:8]), st.integers(0, 0o7777))
def test_strmode_is_what_ls_prints(form: int, perm: int) -> None:
    # What if ls inside and ls outside print the same file differently?
    assert stat.strmode(form | perm) == host_stat.filemode(form | perm)


def test_open_flags_round_trip() -> None:
    # What if an open for reading had no FREAD?
    for mode, bits in ((0, 1), (1, 2), (2, 3)):
        flags = mode | fcntl.O_CREAT | fcntl.O_APPEND
        assert fcntl.fflags(flags) & (fcntl.FREAD | fcntl.FWRITE) == bits
        assert fcntl.oflags(fcntl.fflags(flags)) == flags


def test_linux_open_flags() -> None:
    # What if O_CREAT came in with Linux's number?
    came = fcntl.oflags_from_linux(os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND)
    assert came == 0x0002 | 0x0200 | 0x0800 | 0x0400 | 0x0008
    assert fcntl.oflags_from_linux(os.O_WRONLY | os.O_SYNC) == fcntl.O_WRONLY | fcntl.O_FSYNC
    assert fcntl.oflags_from_linux(os.O_DSYNC) == fcntl.O_FSYNC
    assert fcntl.oflags_from_linux(os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) == (
        fcntl.O_DIRECTORY | fcntl.O_NOFOLLOW | fcntl.O_CLOEXEC
    )
    assert fcntl.oflags_from_linux(os.O_PATH) == 0
    assert fcntl.oflags_from_linux(os.O_NOATIME) == fcntl.O_NOATIME
    assert fcntl.oflags_from_linux(3) == fcntl.O_RDWR
