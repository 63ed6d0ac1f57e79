"""Error numbers: DragonFly's values, the words for them, the two kinds of failure."""

from __future__ import annotations

import errno as host
import pickle

import pytest

from dfuser.libkern import errno as bsd
from dfuser.libkern.errno import (
    EAGAIN,
    ENOENT,
    KKASSERT,
    Errno,
    KError,
    Panic,
    errno_name,
    panic,
    strerror,
)
from dfuser.libkern.linux_errno import from_linux, kerror_from_host, to_linux


def test_constants_and_enumeration_agree() -> None:
    # What if a number was typed twice and differently?
    for member in Errno:
        assert getattr(bsd, member.name) == member.value
    constants = {
        name: value
        for name, value in vars(bsd).items()
        if name.startswith("E") and isinstance(value, int)
    }
    assert set(constants) - {"EWOULDBLOCK", "ENOTSUP", "ELAST"} == {e.name for e in Errno}


def test_numbers_are_dragonflys() -> None:
    # What if a number is Linux's where the two differ, or a hole was filled?
    assert (bsd.EDEADLK, bsd.EAGAIN, bsd.ENAMETOOLONG, bsd.ENOTEMPTY) == (11, 35, 63, 66)
    assert (bsd.ENOSYS, bsd.EFTYPE, bsd.ENOATTR, bsd.ENOMEDIUM) == (78, 79, 87, 93)
    assert (bsd.EASYNC, bsd.ELAST) == (99, 99)
    assert (bsd.ERESTART, bsd.EJUSTRETURN, bsd.ENOIOCTL) == (-1, -2, -3)
    assert bsd.EWOULDBLOCK == EAGAIN
    assert bsd.ENOTSUP == bsd.EOPNOTSUPP == 45
    public = {int(e) for e in Errno if e > 0}
    assert public == set(range(1, 94)) | {99}


def test_strerror_is_ours_not_the_hosts() -> None:
    # What if the text came from the host, where 35 means a deadlock?
    assert strerror(35) == "Resource temporarily unavailable"
    assert strerror(6) == "Device not configured"
    assert strerror(1234) == "Unknown error: 1234"
    assert strerror(0) == "No error"
    assert all(strerror(int(e)) == e.text for e in Errno)
    assert len({e.text for e in Errno}) == len(Errno)


def test_kerror_reads_well() -> None:
    # What if an operator sees a bare number in the log?
    error = KError(EAGAIN)
    assert (error.errno, type(error.errno)) == (35, int)
    assert str(error) == "EAGAIN: Resource temporarily unavailable"
    assert str(KError(ENOENT, "no label 'root'")) == "ENOENT: no label 'root'"
    assert repr(KError(ENOENT)) == "KError(ENOENT, 'No such file or directory')"
    assert str(KError(4711)) == "4711: Unknown error: 4711"
    assert errno_name(ENOENT) == "ENOENT"


def test_kerror_is_one_class_and_survives_pickling() -> None:
    # What if Python chose one of its own subclasses (FileNotFoundError), or a copy lost parts?
    assert type(KError(ENOENT)) is KError
    copy = pickle.loads(pickle.dumps(KError(ENOENT, "text")))
    assert (type(copy), copy.errno, copy.strerror) == (KError, ENOENT, "text")


def test_panic_passes_an_outer_catch() -> None:
    # What if a handler that turns bugs into EIO swallowed a broken invariant?
    def handler() -> str:
        try:
            panic("lost page")
        except Exception:
            return "swallowed"

    with pytest.raises(Panic, match="lost page"):
        handler()


def test_kkassert() -> None:
    # What if an assertion fires when it holds, or not when it fails?
    KKASSERT(True, "never")
    with pytest.raises(Panic, match="refs"):
        KKASSERT(0 > 1, "refs")


def test_every_errno_has_a_linux_number() -> None:
    # What if some error reached the host as a number it does not know?
    for member in Errno:
        assert to_linux(int(member)) in host.errorcode
    assert to_linux(0) == 0
    assert to_linux(777) == host.EIO


def test_names_both_sides_have_round_trip() -> None:
    # What if ENOTEMPTY went out right and came back as something else?
    stood_in = {"EFTYPE", "EPROCLIM", "EAUTH", "ENEEDAUTH", "EBADRPC", "ERPCMISMATCH"}
    shared = [e for e in Errno if e > 0 and hasattr(host, e.name)]
    assert len(shared) > 75
    for member in shared:
        assert to_linux(int(member)) == getattr(host, member.name)
        assert from_linux(to_linux(int(member))) == int(member)
    assert not stood_in & {e.name for e in shared}


def test_errors_without_a_twin() -> None:
    # What if the decisions of the table changed without anyone deciding?
    assert to_linux(bsd.ENOATTR) == host.ENODATA
    assert from_linux(host.ENODATA) == bsd.ENOATTR
    assert to_linux(bsd.EPROCLIM) == host.EAGAIN
    assert to_linux(bsd.EFTYPE) == host.EINVAL
    assert to_linux(bsd.EBADRPC) == host.EBADMSG
    assert to_linux(bsd.ERESTART) == host.EINTR
    assert to_linux(bsd.EASYNC) == host.EIO
    assert to_linux(bsd.ENOIOCTL) == host.ENOTTY


def test_every_linux_error_comes_in() -> None:
    # What if the host reports an error the table has not heard of?
    known = {int(e) for e in Errno}
    for number in host.errorcode:
        assert from_linux(number) in known
    assert from_linux(99999) == bsd.EIO


def test_kerror_from_host() -> None:
    # What if a failed host call kept its Linux number inside the kernel?
    error = kerror_from_host(OSError(host.EAGAIN, "busy"))
    assert (type(error), error.errno) == (KError, EAGAIN)
    ours = KError(ENOENT)
    assert kerror_from_host(ours) is ours
    assert kerror_from_host(OSError("no number")).errno == bsd.EIO
