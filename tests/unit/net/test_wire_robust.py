"""Nothing but WireError comes out of any bytes, and what is accepted is legal."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dfuser.net.wire.base import Why, WireError
from dfuser.net.wire.ip6_ext import IP6_HDRNESTLIMIT, IP6_OPTIONLIMIT, walk
from dfuser.net.wire.ipv6 import Ipv6View
from dfuser.net.wire.nd6_options import ND6_MAXNDOPT, parse_options
from tests.unit.net.codecs import CODECS, Codec
from tests.unit.net.corpus import PACKETS, VALUES


def judge(codec: Codec, raw: bytes, *, loose: bool) -> bool:
    """Decode; what is accepted must be writable and read back as itself."""
    refused: WireError | None = None
    try:
        value = codec.decode(raw, loose)
    except WireError as error:
        refused = error
    if refused is not None:
        assert isinstance(refused.why, Why)
        assert refused.why is not Why.ILLEGAL, "reading found what only writing may find"
        assert refused.at is None or 0 <= refused.at <= len(raw) + 20
        return False
    assert codec.decode(codec.encode(value), loose) == value
    return True


def test_the_corpus_is_canonical() -> None:
    # What if the packets below were not what they are meant to be?
    for name, values in VALUES.items():
        for value in values:
            raw = CODECS[name].encode(value)
            assert CODECS[name].decode(raw, False) == value
    assert set(VALUES) == set(CODECS)
    assert len(PACKETS) > 50


@pytest.mark.parametrize("name", CODECS)
def test_every_truncation(name: str) -> None:
    # What if a packet ended anywhere?
    codec = CODECS[name]
    for kind, packet in PACKETS:
        if kind == name:
            for size in range(len(packet)):
                judge(codec, packet[:size], loose=True)
                judge(codec, packet[:size], loose=False)


@pytest.mark.parametrize("name", CODECS)
def test_every_byte_corrupted(name: str) -> None:
    # What if any byte of a packet were wrong, with or without a checksum that tells?
    codec = CODECS[name]
    for kind, packet in PACKETS:
        if kind != name:
            continue
        for at, old in enumerate(packet):
            news = {0, 1, 255, 127, 128, old + 1 & 255, old - 1 & 255, old ^ 16, old ^ 64} - {old}
            for new in news:
                judge(codec, packet[:at] + bytes((new,)) + packet[at + 1 :], loose=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_every_byte_every_value(name: str) -> None:
    # What if it were just the value that the shorter test leaves out?
    codec = CODECS[name]
    for kind, packet in PACKETS:
        if kind == name:
            for at in range(len(packet)):
                for new in range(256):
                    judge(codec, packet[:at] + bytes((new,)) + packet[at + 1 :], loose=True)


@pytest.mark.parametrize("name", ["ipv4", "udp", "tcp", "icmp", "icmp6"])
def test_a_checksum_finds_every_corrupted_byte(name: str) -> None:
    # What if a corrupted packet were taken for good?
    codec = CODECS[name]
    for kind, packet in PACKETS:
        if kind != name:
            continue
        value = codec.decode(packet, False)
        covered = value[0].wire_len if name == "ipv4" else len(packet)
        for at in range(covered):
            for flip in (1, 0x80, 0xFF):
                raw = packet[:at] + bytes((packet[at] ^ flip,)) + packet[at + 1 :]
                # Two bytes of UDP's checksum together would say that there is none.
                assert not judge(codec, raw, loose=False)


def test_100000_random_buffers(rng: random.Random) -> None:
    # What if somebody sends noise, or noise that begins like a packet?
    codecs = list(CODECS.values())
    accepted: Counter[str] = Counter()
    packets = {name: [raw for kind, raw in PACKETS if kind == name] for name in CODECS}
    for round_ in range(100_000):
        codec = codecs[round_ % len(codecs)]
        raw = rng.randbytes(rng.randrange(96))
        if rng.random() < 0.5:
            packet = rng.choice(packets[codec.name])
            at = rng.randrange(len(packet))
            raw = packet[:at] + raw[: rng.randrange(8)] + packet[at + rng.randrange(8) :]
        accepted[codec.name] += judge(codec, raw, loose=True)
    assert all(accepted[name] for name in CODECS), accepted
    assert sum(accepted.values()) < 80_000


def test_option_bombs_are_bounded() -> None:
    # What if a packet were filled with the smallest options there are?

    header = b"\x3b\xff" + bytes(2046)
    raw = b"\x60\0\0\0" + (2048).to_bytes(2, "big") + b"\x3c\x40" + bytes(32) + header
    with pytest.raises(WireError) as caught:
        walk(Ipv6View(raw))
    assert caught.value.why is Why.IP6S_BADOPTIONS
    assert caught.value.at == 42 + IP6_OPTIONLIMIT
    options = parse_options(b"\xee\x01\0\0\0\0\0\0" * 1000)
    assert len(options) == ND6_MAXNDOPT + 2


def test_header_chains_are_bounded() -> None:
    # What if a packet consisted of extension headers only?

    def chain(count: int) -> bytes:
        headers = b"\x3c\0\1\4\0\0\0\0" * (count - 1) + b"\x3b\0\1\4\0\0\0\0"
        return b"\x60\0\0\0" + len(headers).to_bytes(2, "big") + b"\x3c\x40" + bytes(32) + headers

    assert len(walk(Ipv6View(chain(IP6_HDRNESTLIMIT))).chain.headers) == IP6_HDRNESTLIMIT
    with pytest.raises(WireError, match="ip6s_toomanyhdr"):
        walk(Ipv6View(chain(IP6_HDRNESTLIMIT + 1)))
    assert len(walk(Ipv6View(chain(60)), hdrnestlimit=60).chain.headers) == 60
