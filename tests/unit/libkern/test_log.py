"""The message buffer against a plain byte string, and its readers and listeners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EINVAL, ENOMEM, KError
from dfuser.libkern.log import LISTENERS_MAX, LOG_ERR, LOG_WARNING, MsgBuf
from dfuser.libkern.sysctl import SysctlTree


@given(st.integers(1, 40), st.lists(st.text(max_size=30), max_size=30), st.data())
def test_ring_against_a_string(size: int, texts: list[str], data: st.DataObject) -> None:
    # What if bytes at the seam of the ring were lost, doubled, or counted wrong?
    buf = MsgBuf(size)
    everything = b""
    for text in texts:
        buf.kprintf(text)
        line = text if text.endswith("\n") else text + "\n"
        everything += line.encode("utf-8", "backslashreplace")
    assert buf.seq == len(everything)
    seq = data.draw(st.integers(0, len(everything)))
    chunk = buf.read_since(seq)
    first = max(seq, len(everything) - size)
    assert chunk.data == everything[first:]
    assert chunk.lost == first - seq
    assert chunk.seq == len(everything)
    stats = buf.statistics()
    assert stats.used == min(size, len(everything))
    assert stats.overwritten == max(0, len(everything) - size)
    assert (stats.messages, sum(stats.by_level)) == (len(texts), len(texts))


def test_a_slow_reader_learns_what_he_missed() -> None:
    # What if a reader that was overtaken believed he had seen everything?
    buf = MsgBuf(10)
    buf.kprintf("12345")
    seq = buf.read_since(0).seq
    for _ in range(5):
        buf.kprintf("abcde")
    chunk = buf.read_since(seq)
    assert (chunk.lost, chunk.data) == (20, b"bcde\nabcde\n"[-10:])


def test_reading_in_pieces() -> None:
    # What if a limit lost the rest?
    buf = MsgBuf()
    buf.kprintf("one two three")
    seq, got = 0, b""
    while seq < buf.seq:
        chunk = buf.read_since(seq, 3)
        assert 0 < len(chunk.data) <= 3
        seq, got = chunk.seq, got + chunk.data
    assert got == b"one two three\n"
    assert buf.read_since(seq).data == b""


@pytest.mark.parametrize(("seq", "limit"), [(-1, None), (99, None), (0, -1)])
def test_impossible_positions(seq: int, limit: int | None) -> None:
    # What if a reader from the future, or with nonsense, got garbage?
    with pytest.raises(KError) as caught:
        MsgBuf().read_since(seq, limit)
    assert caught.value.errno == EINVAL


def test_clear_is_no_loss() -> None:
    # What if dmesg -c made readers report lost messages, or left text behind?
    buf = MsgBuf()
    buf.kprintf("old")
    tree = SysctlTree()
    tree.register(buf)
    tree.set("kern.msgbuf_clear", "1")
    assert tree.get("kern.msgbuf") == ""
    buf.kprintf("new")
    assert tree.get("kern.msgbuf") == "new\n"
    assert buf.tail(5) == ["new"]
    assert buf.statistics().overwritten == 0


def test_levels() -> None:
    # What if a warning could not be told from a greeting?
    buf = MsgBuf()
    buf.log(LOG_WARNING, "careful")
    buf.kprintf("worse", LOG_ERR)
    assert buf.text() == "<4>careful\nworse\n"
    stats = buf.statistics()
    assert (stats.by_level[LOG_WARNING], stats.by_level[LOG_ERR]) == (1, 1)


def test_listeners_are_told_and_bad_ones_dropped() -> None:
    # What if one broken listener kept the kernel from logging?
    buf = MsgBuf()
    told: list[int] = []

    def good() -> None:
        told.append(buf.seq)

    def bad() -> None:
        raise RuntimeError("broken")

    buf.listen(bad)
    buf.listen(good)
    buf.kprintf("a")
    buf.kprintf("b")
    buf.unlisten(good)
    buf.unlisten(good)
    buf.kprintf("c")
    assert told == [2, 4]
    stats = buf.statistics()
    assert (stats.listeners, stats.listener_errors) == (0, 1)


def test_listeners_are_bounded() -> None:
    # What if a leak of listeners grew for ever?
    buf = MsgBuf()
    for _ in range(LISTENERS_MAX):
        buf.listen(lambda: None)
    with pytest.raises(KError) as caught:
        buf.listen(lambda: None)
    assert caught.value.errno == ENOMEM


def test_any_text_can_be_logged() -> None:
    # What if a file name that is no UTF-8 made kprintf raise?
    buf = MsgBuf()
    buf.kprintf(b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert buf.text() == "\\udcff\\udcfe\n"
    with pytest.raises(ValueError, match="room"):
        MsgBuf(0)
