"""Numbers of ioctls."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dfuser.dev.ioccom import (
    FIOASYNC,
    FIODTYPE,
    FIONBIO,
    FIONREAD,
    IOC_IN,
    IOC_INOUT,
    IOC_OUT,
    IOC_VOID,
    ioc,
    ioc_from_host,
    ioc_len,
    ioc_to_host,
)
from dfuser.libkern.errno import ENOTTY, KError


def test_numbers_of_filio() -> None:
    # What if the numbers of sys/filio.h are put together from what they say?
    assert ioc(IOC_OUT, "f", 127, 4) == FIONREAD
    assert ioc(IOC_IN, "f", 126, 4) == FIONBIO
    assert ioc(IOC_IN, "f", 125, 4) == FIOASYNC
    assert ioc(IOC_OUT, "f", 122, 4) == FIODTYPE
    assert ioc_len(FIONREAD) == 4


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        (0x80086601, ioc(IOC_OUT, "f", 1, 8)),  # FS_IOC_GETFLAGS
        (0x40086602, ioc(IOC_IN, "f", 2, 8)),  # FS_IOC_SETFLAGS
        (0xC0189436, 0xC0189436),  # FIDEDUPERANGE goes both ways
        (0x5401, 0x20005401),  # TCGETS says nothing
    ],
)
def test_numbers_of_the_host(host: int, ours: int) -> None:
    # What if a number that Linux prints is turned round, and back?
    assert ioc_from_host(host) == ours
    assert ioc_to_host(ours) == host


@given(
    st.sampled_from([IOC_VOID, IOC_OUT, IOC_IN, IOC_INOUT]),
    st.characters(min_codepoint=1, max_codepoint=255),
    st.integers(0, 255),
    st.integers(0, 0x1FFF),
)
def test_there_and_back(direction: int, group: str, number: int, length: int) -> None:
    # What if any number of ours goes to the host and comes back?
    ours = ioc(direction, group, number, length)
    assert ioc_from_host(ioc_to_host(ours)) == ours
    assert ioc_len(ours) == length


@pytest.mark.parametrize("command", [0x8000_0000 | 0x2000 << 16, 1 << 32, -1])
def test_numbers_without_counterpart(command: int) -> None:
    # What if the argument is longer than our numbers can say, or the number is none?
    with pytest.raises(KError) as caught:
        ioc_from_host(command)
    assert caught.value.errno == ENOTTY
