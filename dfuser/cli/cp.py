"""``dfuser cp``: files out of an image, onto the host. Counterpart: cp(1)."""

from __future__ import annotations

import os

import click

from .exits import CliError, ExitCode
from .extract import Extractor, Options
from .image import Image, Source, Verdict, image_options, parse_source, resolve, text
from .verb import verb


def place(source: Source, dest: bytes, several: bool) -> tuple[bytes, bytes]:
    """The host's directory that is copied into, and the name there.

    The name is empty where what is in a directory goes into the destination itself: for the root
    of a PFS, ``.`` and ``..``.

    Raises:
        CliError: the destination is no directory, but must be one.
    """
    name = os.path.basename((source.path or b"/").rstrip(b"/"))
    if os.path.isdir(dest):
        return dest, b"" if name in (b"", b".", b"..") else name
    if several:
        raise CliError(ExitCode.USAGE, f"{text(dest)} is no directory; several files need one")
    if name in (b"", b".", b".."):
        try:
            os.mkdir(dest)
        except OSError as exc:
            raise CliError(ExitCode.OUTPUT, f"{text(dest)}: {exc.strerror}") from None
        return dest, b""
    directory, name = os.path.split(dest.rstrip(b"/"))
    directory = directory or b"."
    if not os.path.isdir(directory):
        raise CliError(ExitCode.USAGE, f"there is no directory {text(directory)}")
    return directory, name


@verb()
@click.argument("sources", metavar="IMAGE[@LABEL]:/PATH...", nargs=-1, required=True)
@click.argument("dest", metavar="DEST", type=click.Path())
@click.option("-r", "recursive", is_flag=True, help="Directories with all that is in them.")
@click.option("-p", "preserve", is_flag=True, help="Keep modes and times, and owners if root.")
@image_options
def command(
    sources: tuple[str, ...], dest: str, recursive: bool, preserve: bool,
    devices: tuple[str, ...], header: int | None,
) -> int:  # fmt: skip
    """Copy files out of a HAMMER2 image onto the host; no mount, no root.

    If DEST is a directory, copies go into it under their own names; the root of a PFS puts what
    is in it there. Holes, symbolic links and, with -r, hard links are kept. Nothing outside of
    DEST is touched, whatever the image holds. Pieces that cannot be read become holes; they are
    told, and the exit code is 21.

    Examples:
      dfuser cp disk.img@DATA:/etc/rc.conf .
      dfuser cp -rp disk.img@snap:/home /tmp/rescued
    """
    verdict = Verdict()
    for given in sources:
        source = parse_source(given)
        try:
            if source.path is None:
                raise CliError(ExitCode.USAGE, f"{given} has no :/PATH")
            directory, name = place(source, os.fsencode(dest), len(sources) > 1)
            with Image(source.image, devices, header) as image:
                pfs = image.pfs(source.label)
                node = resolve(pfs, source, follow=not recursive)
                extractor = Extractor(pfs, Options(recursive, preserve), verdict)
                extractor.copy(node, name, directory, source.path)
        except CliError as exc:
            verdict.tell(exc)
    return verdict.code
