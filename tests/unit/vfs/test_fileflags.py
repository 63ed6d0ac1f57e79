"""File flags in the host's words."""

from __future__ import annotations

from struct import pack

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dfuser.dev.ioccom import ioc_from_host
from dfuser.libkern.errno import EINVAL, ENOTTY, EOPNOTSUPP, EPERM, KError
from dfuser.libkern.stat import (
    APPEND,
    IMMUTABLE,
    SF_APPEND,
    SF_IMMUTABLE,
    SF_NOUNLINK,
    UF_APPEND,
    UF_IMMUTABLE,
    UF_NODUMP,
    UF_OPAQUE,
)
from dfuser.vfs import fileflags as ff

OURS = st.lists(
    st.sampled_from(
        [UF_NODUMP, UF_IMMUTABLE, UF_APPEND, UF_OPAQUE, SF_IMMUTABLE, SF_APPEND, SF_NOUNLINK]
    )
).map(lambda bits: sum(set(bits)))
HOSTS = st.sampled_from(range(0, 0x80, 0x10))


@given(OURS, HOSTS)
def test_what_root_sets_is_what_is_shown(old: int, wanted: int) -> None:
    # What if root sets any flags of the host on a file with any flags of ours?
    new = ff.from_host(old, wanted, True)
    assert ff.to_host(new) == wanted
    mapped = IMMUTABLE | APPEND | UF_NODUMP
    assert new & ~mapped == old & ~mapped
    assert ff.from_host(new, wanted, False) == new
    assert ff.from_host(old, ff.to_host(old), False) == old


@given(OURS, HOSTS)
def test_the_owner_changes_nodump_only(old: int, wanted: int) -> None:
    # What if the owner asks for flags of which two are root's?
    reserved = ff.FS_IMMUTABLE_FL | ff.FS_APPEND_FL
    if (wanted ^ ff.to_host(old)) & reserved:
        with pytest.raises(KError) as caught:
            ff.from_host(old, wanted, False)
        assert caught.value.errno == EPERM
    else:
        assert ff.from_host(old, wanted, False) & ~UF_NODUMP == old & ~UF_NODUMP


@given(st.integers(0, 0xFFFF_FFFF))
def test_flags_without_counterpart(wanted: int) -> None:
    # What if any 32 bits are asked for?
    if wanted & ~0x70:
        with pytest.raises(KError) as caught:
            ff.from_host(0, wanted, True)
        assert caught.value.errno == EOPNOTSUPP
    else:
        assert ff.to_host(ff.from_host(0, wanted, True)) == wanted


@given(OURS)
def test_both_ioctls_say_the_same(flags: int) -> None:
    # What if the same file is asked through both interfaces, and the answers are set again?
    get, xget = (ioc_from_host(n) for n in (ff.FS_IOC_GETFLAGS, ff.FS_IOC_FSGETXATTR))
    put, xput = (ioc_from_host(n) for n in (ff.FS_IOC_SETFLAGS, ff.FS_IOC_FSSETXATTR))
    plain = ff.flags_ioctl(get, b"", flags, 1, False)
    xattr = ff.flags_ioctl(xget, b"", flags, 1, False)
    assert (len(plain.data), len(xattr.data)) == (4, 28)
    assert plain.flags is None
    assert ff.flags_ioctl(put, plain.data, flags, 1, False).flags == flags
    assert ff.flags_ioctl(put, plain.data + bytes(4), flags, 1, False).flags == flags
    assert ff.flags_ioctl(xput, xattr.data, flags, 1, False).flags == flags
    one = ff.flags_ioctl(put, plain.data, 0, 1, True).flags
    assert one == ff.flags_ioctl(xput, xattr.data, 0, 1, True).flags


@given(st.integers(0, 0xFFFF_FFFF), st.binary(max_size=40))
def test_any_number_and_any_bytes(command: int, data: bytes) -> None:
    # What if the number and the bytes are random: is there ever anything but these errors?
    length, number = 0, 0
    try:
        length = len(ff.flags_ioctl(command, data, 0, 7, True).data)
    except KError as error:
        number = error.errno or -1
    assert length in (0, 4, 28)
    assert number in (0, ENOTTY, EINVAL, EOPNOTSUPP)


def test_generation() -> None:
    # What if the generation is larger than what an int can say?
    for number in (ff.FS_IOC_GETVERSION, ff.FS_IOC32_GETVERSION):
        answer = ff.flags_ioctl(ioc_from_host(number), b"", 0, (1 << 40) + 5, False)
        assert answer == (pack("=I", 5), None)
