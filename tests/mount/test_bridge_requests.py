"""How many requests ordinary work costs: what need not be asked is not asked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.mount.rig import Rig, rig

pytestmark = pytest.mark.mount


@pytest.fixture
def world(transport: str) -> Iterator[Rig]:
    with rig() as one:
        yield one


def test_a_close_is_one_request(world: Rig, transport: str) -> None:
    """What if the host asked for a flush at every close, though nothing is buffered here?

    Where we serve record locks it must, since a close releases them.
    """
    for n in range(50):
        os.close(os.open(world.path / f"f{n}", os.O_CREAT | os.O_WRONLY))
    counts = world.inside("return dict(s.served())")
    assert counts["create"] == 50
    assert counts["flush"] == (1 if transport == "pyfuse3" else 50)
