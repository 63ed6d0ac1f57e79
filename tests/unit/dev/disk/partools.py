"""sfdisk and sgdisk as oracles for slice tables, and layouts to ask them about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from dfuser.dev.disk.mbr import mbrinit
from dfuser.dev.disk.table import DiskInfo, SliceTable, run_probe

SFDISK = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin:/bin")
SGDISK = shutil.which("sgdisk", path="/usr/sbin:/sbin:/usr/bin:/bin")
needs_sfdisk = pytest.mark.skipif(SFDISK is None, reason="sfdisk (Debian: fdisk) is not installed")
needs_sgdisk = pytest.mark.skipif(SGDISK is None, reason="sgdisk (Debian: gdisk) is not installed")


class Part(NamedTuple):
    """A line of ``sfdisk -d``."""

    number: int
    start: int
    size: int
    type: str
    uuid: str = ""
    name: str = ""


def run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sfdisk_dump(image: Path) -> list[Part]:
    """The partitions sfdisk sees, empty ones left out."""
    assert SFDISK is not None
    parts = []
    for line in run(SFDISK, "-d", str(image)).splitlines():
        if not (found := re.match(rf"{re.escape(str(image))}(\d+) : (.*)", line)):
            continue
        words = dict(re.findall(r'(\w+)=\s*("[^"]*"|[^,\s]+)', found[2]))
        if int(words["size"]):
            parts.append(
                Part(
                    int(found[1]), int(words["start"]), int(words["size"]),
                    words["type"].lower(), words.get("uuid", "").lower(),
                    words.get("name", "").strip('"'),
                )
            )  # fmt: skip
    return parts


def probe_image(image: Path | bytes, blksize: int = 512) -> SliceTable:
    """What our probe sees."""
    data = image if isinstance(image, bytes) else image.read_bytes()
    info = DiskInfo(blksize, len(data) // blksize)
    return run_probe(
        mbrinit(info), lambda r: data[r.block * blksize : (r.block + r.nblocks) * blksize]
    )


def write_sectors(image: Path, blocks: int, sectors: dict[int, bytes], blksize: int = 512) -> None:
    """Make an image of so many blocks with some sectors filled."""
    with image.open("wb") as file:
        file.truncate(blocks * blksize)
        for block, data in sectors.items():
            file.seek(block * blksize)
            file.write(data)
