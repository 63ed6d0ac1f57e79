"""``dfuser newfs``: volumes that our own check and reader accept, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfuser.cli.exits import ExitCode

from .conftest import Dfuser


def test_a_volume_is_made_and_is_clean(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a volume is made with two labels: is it sparse, clean, and are they in it?
    image = tmp_path / "disk.img"
    made = dfuser("newfs", "-s", "8g", "-L", "ROOT", "-L", "BUILD", str(image))
    assert made.code == 0
    assert "LOCAL, ROOT, BUILD" in made.out
    assert image.stat().st_size == 8 << 30
    assert image.stat().st_blocks * 512 < 4 << 20
    assert dfuser("fsck", str(image)).code == 0
    told = json.loads(dfuser("hammer2", "pfs-list", "--json", str(image)).out)
    assert {"LOCAL", "ROOT", "BUILD"} <= {row["label"] for row in rows(told)}


def rows(told: object) -> list[dict[str, str]]:
    """The first list of records in a document."""
    if isinstance(told, list):
        return told
    assert isinstance(told, dict)
    return next(value for value in told.values() if isinstance(value, list))


def test_a_small_volume_warns(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a volume has room for one header copy only?
    made = dfuser("newfs", "-s", "256m", "--json", str(tmp_path / "s.img"))
    assert made.code == 0
    assert json.loads(made.out)["volume"]["labels"] == ["DATA"]
    warned = dfuser("newfs", "-s", "256m", str(tmp_path / "t.img"))
    assert "one header copy" in warned.line


def test_several_images_make_one_volume(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a volume lies on two images?
    first, second = str(tmp_path / "a.img"), str(tmp_path / "b.img")
    assert dfuser("newfs", "-s", "2g", first, second).code == 0
    assert dfuser("fsck", "-D", second, first).code == 0
    assert dfuser("fsck", first).code != 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-s", "1m"], "less than 8m"),
        (["-s", "many"], "not a size"),
        (["-s", "16m"], "too small"),
        (["-s", "1g", "-L", "x" * 300], "label"),
    ],
)
def test_what_makes_no_volume(dfuser: Dfuser, tmp_path: Path, words: list[str], text: str) -> None:
    # What if size or label cannot be?
    made = dfuser("newfs", *words, str(tmp_path / "d.img"))
    assert made.code == ExitCode.USAGE
    assert text in made.line


def test_what_exists_is_kept(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if the image is there already: is it written over only when that is asked for?
    image = tmp_path / "d.img"
    image.write_bytes(b"precious")
    refused = dfuser("newfs", str(image))
    assert (refused.code, image.read_bytes()) == (ExitCode.USAGE, b"precious")
    assert "--force" in refused.line
    assert dfuser("newfs", "--force", "-s", "256m", str(image)).code == 0
    assert dfuser("fsck", str(image)).code == 0
