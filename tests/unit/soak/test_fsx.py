"""The tester of file data finds what is planted, and finds nothing where nothing is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfuser.soak.fsx import Fsx
from dfuser.soak.report import SoakFailure


@pytest.mark.parametrize("seed", range(3))
def test_good_file_system_passes(tmp_path: Path, seed: int) -> None:
    """What if the tester complains about a file system that is right?"""
    tester = Fsx(tmp_path, seed)
    assert tester.run(operations=600) == 600
    tester.close()
    assert os.listdir(tmp_path) == []


def test_one_wrong_byte_is_found(tmp_path: Path) -> None:
    """What if a single byte changes behind the tester's back?"""
    tester = Fsx(tmp_path, 1, files=1)
    tester.run(operations=300)
    path = tmp_path / "fsx-0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SoakFailure, match=r"1 bytes differ"):
        tester.run(operations=300)


def test_wrong_size_is_found(tmp_path: Path) -> None:
    """What if the file grew by a byte?"""
    tester = Fsx(tmp_path, 1, files=1)
    tester.run(operations=100)
    with (tmp_path / "fsx-0").open("ab") as f:
        f.write(b"x")
    with pytest.raises(SoakFailure, match="size"):
        tester.run(operations=100)


def test_lost_write_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the file system says that it wrote, and did not, every 50th time?"""
    real, calls = os.pwrite, [0]

    def forgetful(fd: int, data: bytes, offset: int) -> int:
        calls[0] += 1
        return len(data) if calls[0] % 50 == 0 else real(fd, data, offset)

    tester = Fsx(tmp_path, 2)
    monkeypatch.setattr(os, "pwrite", forgetful)
    with pytest.raises(SoakFailure) as failure:
        tester.run(operations=3000)
    assert failure.value.seed == 2
    assert failure.value.log[-1].startswith(str(failure.value.operations))


def test_seed_replays(tmp_path: Path) -> None:
    """What if the same seed did other operations the second time?"""
    contents = []
    for name in ("one", "two"):
        place = tmp_path / name
        place.mkdir()
        Fsx(place, 9).run(operations=400)
        contents.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert contents[0] == contents[1]
