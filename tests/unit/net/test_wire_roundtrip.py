"""Values survive the wire, and canonical packets survive being read and written again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.net.wire.base import WireError
from tests.unit.net.codecs import CODECS
from tests.unit.net.strategies import VALUES


def test_every_codec_has_values() -> None:
    # What if a protocol were added without being tried here?
    assert set(CODECS) == set(VALUES)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=80)
def test_a_value_survives_the_wire(name: str, data: st.DataObject) -> None:
    # What if some legal value were written so that it is read back as another?
    codec = CODECS[name]
    value = data.draw(VALUES[name])
    raw = codec.encode(value)
    assert codec.decode(raw, False) == value
    # A packet made by emit is canonical: nothing of it is lost by reading it.
    assert codec.encode(codec.decode(raw, False)) == raw


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=25)
def test_any_buffer_type_reads_alike(name: str, data: st.DataObject) -> None:
    # What if a memoryview, as the driver has it, were read differently from bytes?
    codec = CODECS[name]
    raw = codec.encode(data.draw(VALUES[name]))
    padded = memoryview(b"\xee" + raw)[1:]
    assert codec.decode(padded, False) == codec.decode(bytearray(raw), False)


@pytest.mark.parametrize("name", sorted(set(CODECS) - {"pcap", "pcapng"}))
@given(data=st.data())
@settings(max_examples=60)
def test_any_bytes_give_a_legal_value_or_a_refusal(name: str, data: st.DataObject) -> None:
    # What if bytes were read into a value that could not be written, or changed by writing?
    codec = CODECS[name]
    raw = data.draw(st.binary(max_size=120))
    try:
        value = codec.decode(raw, True)
    except WireError:
        return
    assert codec.decode(codec.encode(value), True) == value
