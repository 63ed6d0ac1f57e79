"""Disks by name: what a user writes to say which disk he means.

::

    /srv/root.img                     an image file; so is file:/srv/root.img
    file:/srv/root.img?ro             read only
    file:/srv/root.img?direct         past the host's cache
    file:/srv/root.img?create=8g      made, sparse, if it is not there
    ram:64m                           a disk in memory
    nbd://host:10809/export           a network block device
    nbd+unix:///export?socket=/run/x  the same over a Unix-domain socket

Options behind ``?`` are joined by ``&``; ``sector=4096`` is another. A bare path is taken as it is,
question marks included. Sizes are bytes, or end in k, m, g or t.

Counterpart: none; vkernel's -r option.
Token/lock order: takes none.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from dfuser.libkern.errno import EINVAL, KError

from .disk import DiskBase
from .executor import Executor
from .image import ImageDisk
from .nbd import BlockingNbdDisk, NbdDisk
from .nbdwire import NbdAddress, NbdError
from .ram import RamDisk

_UNITS: Final = "kmgt"
_SCHEMES: Final = ("file:", "ram:", "nbd:", "nbd+unix:")


class DiskSpec(NamedTuple):
    """A disk somebody means.

    Attributes:
        scheme: ``file``, ``ram`` or ``nbd``.
        where: path, size or address, as text.
        readonly, direct: as wished.
        create: size to make an image with, 0 for none.
        sector: bytes of a sector.
    """

    scheme: str
    where: str
    readonly: bool = False
    direct: bool = False
    create: int = 0
    sector: int = 512

    @classmethod
    def parse(cls, text: str) -> DiskSpec:
        """Read a name.

        Raises:
            KError: EINVAL, with what is wrong.
        """
        if not text.startswith(_SCHEMES):
            return cls("file", text)
        scheme, _, rest = text.partition(":")
        if scheme.startswith("nbd"):
            try:
                NbdAddress.parse(text)
            except ValueError as error:
                raise KError(EINVAL, str(error)) from None
            return cls("nbd", text)
        where, _, query = rest.partition("?")
        if not where:
            raise KError(EINVAL, f"{text}: nothing behind {scheme}:")
        spec = cls(scheme, where)
        for option in filter(None, query.split("&")):
            spec = spec._with(option, text)
        return spec

    def _with(self, option: str, text: str) -> DiskSpec:
        key, _, value = option.partition("=")
        if key == "ro" and not value:
            return self._replace(readonly=True)
        if key == "direct" and not value and self.scheme == "file":
            return self._replace(direct=True)
        if key == "create" and self.scheme == "file":
            return self._replace(create=parse_size(value))
        if key == "sector":
            return self._replace(sector=parse_size(value))
        raise KError(EINVAL, f"{text}: no option {option!r}")

    def open(self, executor: Executor | None = None) -> DiskBase:
        """Open the disk in its in-place form.

        Args:
            executor: who does what waits, for an image of a kernel.

        Raises:
            KError: as the disk's own way of opening.
        """
        if self.scheme == "ram":
            size = parse_size(self.where)
            return RamDisk(size, self.sector, name=f"ram:{self.where}", readonly=self.readonly)
        if self.scheme == "nbd":
            return BlockingNbdDisk(NbdAddress.parse(self.where), readonly=self.readonly)
        if self.create and not os.path.lexists(self.where):
            return ImageDisk.create(
                self.where, self.create, direct=self.direct, sector_size=self.sector,
                executor=executor,
            )  # fmt: skip
        return ImageDisk.open(
            self.where, readonly=self.readonly, direct=self.direct, sector_size=self.sector,
            executor=executor,
        )  # fmt: skip

    async def open_async(self, executor: Executor | None = None) -> DiskBase:
        """Open the disk for a kernel: a network disk must then be given its pump, `NbdDisk.run`.

        Raises:
            KError: as `open`.
        """
        if self.scheme == "nbd":
            try:
                return await NbdDisk.connect(NbdAddress.parse(self.where), readonly=self.readonly)
            except NbdError as error:
                raise KError(EINVAL, str(error)) from None
        return self.open(executor)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8g`` or ``65536``.

    Raises:
        KError: EINVAL, it is none.
    """
    number, unit = text, ""
    if text and text[-1].lower() in _UNITS:
        number, unit = text[:-1], text[-1].lower()
    if not (number.isascii() and number.isdigit()):
        raise KError(EINVAL, f"{text!r} is no size")
    return int(number) << (10 * (_UNITS.index(unit) + 1) if unit else 0)
