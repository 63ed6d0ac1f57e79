"""``dfuser fsck``: the deep check of an image. Counterpart: fsck_hammer2(8)."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Any, Final

import click

from dfuser.vfs.hammer2.fsck import Finding, Fsck, Progress, Severity, Statistics

from .exits import ExitCode
from .image import Image, Meter, image_options, named, text
from .output import clean, paint, print_json, size
from .talk import json_option
from .verb import verb

#: Findings that a JSON document has at most; what is left out is counted.
LIMIT: Final = 10_000
_WORDS: Final = MappingProxyType(
    {Severity.ERROR: "fail", Severity.WARNING: "warn", Severity.NOTE: "note"}
)


def line_of(finding: Finding) -> str:
    """A finding in one line: how bad, where, what."""
    where = []
    if finding.pfs is not None:
        where.append(f"@{text(finding.pfs)}")
    if finding.inum is not None:
        where.append(f"inode {finding.inum:#x}")
    if finding.data_off:
        where.append(f"block {finding.data_off & ~63:#x}")
    place = f" ({', '.join(where)})" if where else ""
    return f"{paint(_WORDS[finding.severity])} {finding.kind.value}: {clean(finding.text)}{place}"


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs; members that say nothing are left out."""
    out: dict[str, Any] = {
        "kind": finding.kind.value,
        "severity": finding.severity.value,
        "text": clean(finding.text),
    }
    if finding.pfs is not None:
        out |= named(finding.pfs, "pfs")
    for name in ("inum", "key", "expected", "found"):
        value = getattr(finding, name)
        if value is not None:
            out["inode" if name == "inum" else name] = value
    if finding.data_off:
        out |= {"block": finding.data_off & ~63, "block_bytes": 1 << (finding.data_off & 63)}
    return out


def progress_of(progress: Progress) -> str:
    """How far a check is, in a line."""
    share = ""
    if progress.total and progress.phase == "topology":
        share = f" {min(99, progress.bytes * 100 // progress.total)}%"
    return f"{progress.phase}{share}: {progress.blocks} blocks, {size(progress.bytes)}"


def summary(done: Statistics) -> str:
    """What was done, in a line."""
    return (
        f"{done.headers} headers, {done.pfss} PFSs, {done.inodes} inodes, {done.names} names, "
        f"{done.blocks} blocks with {size(done.bytes)}"
    )


def counted(done: Statistics) -> str:
    """What was found, in words."""
    parts = ((done.errors, "error"), (done.warnings, "warning"))
    told = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in parts if count]
    return " and ".join(told)


def check(fsck: Fsck, found: list[Finding] | None, quiet: bool) -> bool:
    """Run a check, printing or collecting findings; False if the user stopped it."""
    meter = Meter()
    try:
        for record in fsck.run():
            if isinstance(record, Progress):
                meter.show(partial(progress_of, record))
            elif found is not None:
                if len(found) < LIMIT:
                    found.append(record)
            elif not quiet or record.severity is not Severity.NOTE:
                meter.clear()
                print(line_of(record))
    except KeyboardInterrupt:
        return False
    finally:
        meter.clear()
    return True


@verb()
@click.argument("image", metavar="IMAGE")
@click.option("-q", "quiet", is_flag=True, help="Leave out what is no fault.")
@image_options
@json_option
def command(
    image: str, quiet: bool, devices: tuple[str, ...], header: int | None, as_json: bool
) -> int:
    """Check a HAMMER2 image, deeper than DragonFly's fsck; nothing is changed.

    Looked at are all header copies and what they lead to, the check code of every block, order
    and ranges of keys, statistics, names against inodes, link counts, orphans, blocks used twice,
    file data that cannot be decompressed, and the freemap against the blocks in use. Ctrl-C ends
    a check; what was done until then is said.

    Exit codes: 0 clean, perhaps with warnings; 21 errors were found; 11 it cannot be checked; 130
    stopped.

    Examples:
      dfuser fsck disk.img
      dfuser fsck --json disk.img | jq '.findings[].text'
    """
    found: list[Finding] | None = [] if as_json else None
    with Image(image, devices, header) as opened:
        fsck = Fsck(opened.volume)
        whole = check(fsck, found, quiet)
    done = fsck.statistics()
    image = clean(image)
    if found is not None:
        _print_json(image, fsck, found, whole)
    elif not whole:
        print(f"{image}: stopped; until then {summary(done)}; {counted(done) or 'no error'}")
    else:
        print(f"{image}: {verdict(done)}; {summary(done)}")
    if not whole:
        return ExitCode.SIGNAL + 2
    return ExitCode.DAMAGED if done.errors else ExitCode.OK


def verdict(done: Statistics) -> str:
    """The result of a whole check."""
    return counted(done) if done.errors else f"clean, {counted(done)}" if done.warnings else "clean"


def _print_json(image: str, fsck: Fsck, found: list[Finding], whole: bool) -> None:
    """Print one document with everything."""
    done = fsck.statistics()
    told = done.errors + done.warnings + done.notes
    print_json(
        "findings", [as_json(finding) for finding in found], image=image, complete=whole,
        clean=whole and not done.errors, left_out=told - len(found), statistics=done._asdict(),
    )  # fmt: skip
