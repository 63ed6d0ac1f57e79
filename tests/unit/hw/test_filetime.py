"""Times for file stamps: from the clock the host's kernel uses itself."""

from __future__ import annotations

import os
from pathlib import Path

from dfuser.hw.clock import HostClock, VirtualClock


def test_stamps_are_never_ahead_of_the_host(tmp_path: Path) -> None:
    # What if the host touches a file right after we have stamped it?
    clock = HostClock()
    file = tmp_path / "f"
    for _ in range(200):
        ours = clock.filetime_ns()
        file.touch()
        assert os.stat(file).st_mtime_ns >= ours


def test_a_virtual_clock_has_one_calendar() -> None:
    # What if time is made by hand?
    clock = VirtualClock()
    clock.advance(12_345)
    assert clock.filetime_ns() == clock.realtime_ns()
