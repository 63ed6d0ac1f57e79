r"""Chains: blocks of the media in memory, the trees they make, and copy-on-write.

A chain stands for one block that has entries below it or attributes in it: the header's two
blocksets, indirect blocks, inodes, blocks of the freemap. Each has a table, sorted by key, whose
slots hold either a blockref, as it lies on the media, or the chain of what the blockref leads to::

    vchain [ . ]                              the header: sroot_blockset
             \
           INODE sroot [ bref | . | bref ]    tables mix blockrefs and chains
                                \
                              INODE PFS root [ . | INDIRECT . ]

DATA and DIRENT never become chains. Their blocks are written when they are made, so a blockref is
all there is to know; that keeps a directory of a million names in tuples.

**Copy-on-write.** A transaction is everything from one sync to the next. The first change of a
chain in a transaction gives it a new block (`modify`); later ones find it modified. All its
ancestors are given new blocks at the same time, up to the header, since the flush must rewrite
them anyway. So space is claimed before anything changes, an operation that finds none fails having
changed nothing, and **the flush never allocates**: whatever was accepted can be made stable.

**Growing and shrinking.** An entry that finds its table full moves a range of the table into a
new indirect block (`create_indirect`; which range: ondisk/indkey.py). Emptied indirect blocks go,
and sparse ones are folded into the table above, at the flush (`indirect_maintenance`).

**Cache.** Unmodified chains without chains below may be dropped at any time *between* operations
(`trim`); then the slot holds the blockref again and ``alive`` becomes false. Whoever keeps a chain
across operations looks at ``alive``.

Counterpart: struct hammer2_chain (vfs/hammer2/hammer2.h), hammer2_chain.c.
Differs from DragonFly: one sorted table instead of a tree of chains laid over a table of
    blockrefs, so that nothing has to be merged; ancestors are modified at once instead of by the
    flush, which there may run out of space; statistics are counted anew by the flush.
Token/lock order: takes none; every function runs to its end. A caller that may be interrupted
    between two of them holds the volume's lock.
Invariants: keys of a table ascend and ranges do not overlap; a modified chain has a block of its
    own that no header refers to, is in its parent's ``dirty``, and its ancestors are modified;
    ``nchains`` is the number of slots that are chains; what is not modified equals the media.
"""

from __future__ import annotations

from typing import Final

from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import BLOCKREF, Blockref
from dfuser.vfs.hammer2.ondisk.const import BLOCKREF_BYTES, EMBEDDED_BYTES, KEY_MAX
from dfuser.vfs.hammer2.tree import make_table

_pack: Final = BLOCKREF.pack


class Chain:
    """A block with a table in it: an indirect block, a freemap node, a blockset of the header.

    Attributes:
        bref: what refers to it; in a modified chain check code and statistics are old.
        parent: the chain whose table it is in; None for the header's two and for what is removed.
        keys, slots: the table. room: how many entries it may have.
        modified: it has a block of this transaction.
        modify_tid: the operation that changed it last.
        dirty: modified chains of its table.
        nchains: chains of its table.
        used: it was asked for since `trim` last came by. pinned: `trim` leaves it alone.
        alive: it is part of its tree.

    Counterpart: struct hammer2_chain (hammer2.h).
    """

    __slots__ = (
        "alive", "bref", "dirty", "keys", "modified", "modify_tid", "nchains", "parent", "pinned",
        "room", "slots", "used",
    )  # fmt: skip

    def __init__(self, bref: Blockref, room: int) -> None:
        """A chain with an empty table."""
        self.bref = bref
        self.parent: Chain | None = None
        self.keys: list[int] = []
        self.slots: list[Blockref | Chain] = []
        self.room = room
        self.modified = False
        self.modify_tid = bref.modify_tid
        self.dirty: dict[Chain, None] = {}
        self.nchains = 0
        self.used = True
        self.pinned = False
        self.alive = True

    @property
    def below_directory(self) -> bool:
        """Whether the table lies in the inode of a directory."""
        return False

    def table_bytes(self) -> bytes:
        """The table as it lies in the block, without the empty entries behind it."""
        return b"".join(
            [_pack(*(s if s.__class__ is Blockref else s.bref)) for s in self.slots]  # type: ignore[union-attr]
        )

    def pack(self) -> bytes:
        """The block."""
        return self.table_bytes().ljust(self.room * BLOCKREF_BYTES, b"\0")

    def brefs(self) -> list[Blockref]:
        """The entries of the table as blockrefs."""
        return [s if s.__class__ is Blockref else s.bref for s in self.slots]  # type: ignore[union-attr]

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} type {self.bref.type} key {self.bref.key:#x}"
            f"/{self.bref.keybits} {len(self.keys)} of {self.room}>"
        )


def make_inner(bref: Blockref, data: bytes) -> Chain:
    """The chain of an indirect block or freemap node.

    Raises:
        MediaError: it is no table.
    """
    if len(data) % BLOCKREF_BYTES:
        raise MediaError("an indirect block of this size", bref.data_off)
    chain = Chain(bref, len(data) // BLOCKREF_BYTES)
    fill_table(chain, data, bref.key, bref.last_key)
    return chain


def fill_table(chain: Chain, data: bytes, first: int = 0, last: int = KEY_MAX) -> None:
    """Decode a table into its chain.

    Raises:
        MediaError: an entry leaves the range, or two overlap.
    """
    table = make_table(data, first, last, chain.bref.data_off)
    chain.keys = table.keys
    chain.slots = list(table.brefs)


def blockset(chain: Chain) -> bytes:
    """The 512 bytes of a table with four entries."""
    return chain.table_bytes().ljust(EMBEDDED_BYTES, b"\0")
