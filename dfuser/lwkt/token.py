"""Serializing tokens: locks that are let go whenever their holder waits.

A token protects data only while its holder runs. When the holder suspends, for whatever reason,
all its tokens become free; before it continues, all of them are held again. So tokens may be taken
in any order and never deadlock, and what they protect must be looked at again after every
suspension. A thread that was preempted by an interrupt thread keeps its tokens.

    async with vnode_token:                 # takes it, suspends only if it is contended
        ...
    with vnode_token.nowait():              # for plain code: raises Block when held elsewhere
        ...

How a contended token is waited for: the thread stays runnable with the token on its list; its CPU
passes it over at every election until all its tokens can be had at once. A CPU that had nothing
else to run is kicked when one of the tokens it missed is released.

Modes. Exclusive: one thread; taking it again is counted on top. Shared: many threads. The exclusive
holder may take it shared. Taking it exclusively with only shared references panics (it could never
succeed). While somebody waits for exclusive use (EXCLREQ), new shared takers wait too, provided it
is their only token: a thread with several must take what it can get, or two could block each other.

Counterpart: kern/lwkt_token.c, struct lwkt_token and lwkt_tokref (sys/thread.h).
Differs from DragonFly: no polling, no back-off, no windows of the time stamp counter, no sorting:
all tokens of a thread are taken in one step that nothing can interleave with. EXCLREQ does not hold
anybody up while the CPU of the one who asked is stopped.
Token/lock order: any; released last in, first out.
Invariants: ``count`` bit 0 exclusive, bit 1 EXCLREQ, 4 for each reference besides; ``ref`` is set
exactly while bit 0 is; an elected thread holds all its tokens, a suspended one holds none.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import attrs

from dfuser.libkern.ddbcmd import ddb_show
from dfuser.libkern.errno import panic
from dfuser.libkern.ktr import KtrInfo
from dfuser.libkern.sysctl import LONG, RW, Sysctl

from . import thread as _thread
from .block import Block
from .thread import TDF, Thread, switch

if TYPE_CHECKING:
    from .machine import Lwkt
    from .sched import Cpu

#: Bits of `Token.count`. Counterpart: TOK_* (sys/thread.h).
TOK_EXCLUSIVE: Final = 1
TOK_EXCLREQ: Final = 2
TOK_INCR: Final = 4
_EXCL: Final = TOK_EXCLUSIVE | TOK_EXCLREQ
_HELD: Final = ~TOK_EXCLREQ

#: Tokens one thread may hold. Counterpart: LWKT_MAXTOKENS.
LWKT_MAXTOKENS: Final = 32
LWKT_POOL_TOKENS: Final = 16384
_POOL_PRIME1: Final = 66555444443333333
_POOL_PRIME2: Final = 989042931893

#: The tokens every kernel has.
WELL_KNOWN: Final = (
    "mp", "pmap", "dev", "vm", "vmspace", "kvm", "sigio", "tty", "vnode",
)  # fmt: skip


class TokRef:
    """One reference of a thread to a token. Counterpart: struct lwkt_tokref (sys/thread.h)."""

    __slots__ = ("count", "owner", "tok")

    def __init__(self, tok: Token, count: int, owner: Thread) -> None:
        self.tok = tok
        self.count = count
        self.owner = owner


@attrs.frozen
class TokenStatistics:
    """What `Token.statistics` returns."""

    name: str
    collisions: int
    exclusive: bool
    references: int
    exclreq: bool
    owner: str


class Token:
    """A serializing token. Counterpart: struct lwkt_token (sys/thread.h).

    Args:
        lwkt: the machine it belongs to.
        name: shown as the wait message of a thread that wants it.
    """

    __slots__ = ("collisions", "count", "lwkt", "name", "ref", "reqcpu", "stalled")

    sysctl_collisions = Sysctl(
        lambda tok: f"lwkt.{tok.name}_collisions",
        "Collision counter of the token", attr="collisions", kind=LONG, flags=RW,
    )  # fmt: skip
    ktr_fail = KtrInfo("tokens", "fail", "tok %s td %s")
    ktr_succ = KtrInfo("tokens", "succ", "tok %s td %s")

    def __init__(self, lwkt: Lwkt, name: str) -> None:
        self.lwkt = lwkt
        self.name = name
        self.count = 0
        self.ref: TokRef | None = None
        #: Elections and requests that could not get the token.
        self.collisions = 0
        #: CPUs that passed a thread over because of this token; kicked by its release.
        self.stalled = 0
        #: The CPU of the last thread that asked for exclusive use in vain.
        self.reqcpu: Cpu | None = None

    def __repr__(self) -> str:
        return f"<Token {self.name} count={self.count:#x}>"

    # --- taking ----------------------------------------------------------------------------

    async def gettoken(self) -> None:
        """Take the token exclusively; suspends only if another running thread holds it.

        Counterpart: lwkt_gettoken.
        """
        td = _thread.curthread
        toks = td.toks
        ref = TokRef(self, _EXCL, td)
        if len(toks) >= LWKT_MAXTOKENS:
            _overflow(td)
        toks.append(ref)
        if self.count == 0:
            self.count = TOK_EXCLUSIVE
            self.ref = ref
            return
        if not self._try(ref, td, _EXCL):
            await self._contended(ref, td)

    async def gettoken_shared(self) -> None:
        """Take the token shared; suspends only if a running thread holds it exclusively.

        Counterpart: lwkt_gettoken_shared.
        """
        td = _thread.curthread
        ref = self._push(td, TOK_EXCLREQ)
        if not self._try(ref, td, TOK_EXCLREQ):
            await self._contended(ref, td)

    def trytoken(self) -> bool:
        """Take the token exclusively if that needs no waiting. Counterpart: lwkt_trytoken."""
        td = _thread.curthread
        return self._try_or_pop(self._push(td, _EXCL), td, TOK_EXCLUSIVE)

    def trytoken_shared(self) -> bool:
        """Take the token shared if that needs no waiting."""
        td = _thread.curthread
        return self._try_or_pop(self._push(td, TOK_EXCLREQ), td, 0)

    def reltoken(self) -> None:
        """Release the reference taken last, which must be to this token; panics otherwise.

        Counterpart: lwkt_reltoken.
        """
        td = _thread.curthread
        toks = td.toks
        if not toks or toks[-1].tok is not self:
            if self.lwkt.panicked:
                return
            last = toks[-1].tok.name if toks else "none"
            panic(f"lwkt_reltoken: {td} releases {self.name}, its last token is {last}")
        ref = toks.pop()
        if self.ref is ref:
            self.ref = None
            self.count &= ~TOK_EXCLUSIVE
        else:
            self.count -= TOK_INCR
        if self.stalled:
            self._kick()

    def nowait(self, shared: bool = False) -> _NoWait:
        """A ``with`` block for plain code: holds the token, or raises `Block` at its start."""
        return _NoWait(self, shared)

    async def __aenter__(self) -> Token:
        await self.gettoken()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.reltoken()

    async def wait(self) -> int:
        """Wait until the token can be had; what the edge awaits for a `Block`. Returns 0."""
        await self.gettoken()
        self.reltoken()
        return 0

    # --- looking ---------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether the running thread holds the token in any mode. Counterpart: LWKT_TOKEN_HELD."""
        return any(ref.tok is self for ref in _thread.curthread.toks)

    @property
    def held_excl(self) -> bool:
        """Whether the running thread holds it exclusively. Counterpart: LWKT_TOKEN_HELD_EXCL."""
        return self.ref is not None and self.ref.owner is _thread.curthread

    def cnttoken(self, td: Thread) -> int:
        """References ``td`` has to the token, held now or not. Counterpart: lwkt_cnttoken."""
        return sum(ref.tok is self for ref in td.toks)

    def statistics(self) -> TokenStatistics:
        """The token's state and its collisions since boot."""
        return TokenStatistics(
            name=self.name,
            collisions=self.collisions,
            exclusive=bool(self.count & TOK_EXCLUSIVE),
            references=self.count // TOK_INCR + (self.count & TOK_EXCLUSIVE),
            exclreq=bool(self.count & TOK_EXCLREQ),
            owner=self.ref.owner.name if self.ref is not None else "",
        )

    # --- the core --------------------------------------------------------------------------

    def _push(self, td: Thread, mode: int) -> TokRef:
        if len(td.toks) >= LWKT_MAXTOKENS:
            _overflow(td)
        ref = TokRef(self, mode, td)
        td.toks.append(ref)
        return ref

    def _try_or_pop(self, ref: TokRef, td: Thread, mode: int) -> bool:
        if self._try(ref, td, mode):
            return True
        td.toks.pop()
        self.collisions += 1
        return False

    def _try(self, ref: TokRef, td: Thread, mode: int) -> bool:
        """Take the token for ``ref`` or say no; EXCLREQ in ``mode``: the caller will wait."""
        count = self.count
        mine = self.ref is not None and self.ref.owner is td
        if mode & TOK_EXCLUSIVE:
            if not count & _HELD:
                self.count = TOK_EXCLUSIVE
                self.ref = ref
                return True
            if mine:
                self.count = count + TOK_INCR
                ref.count &= ~TOK_EXCLUSIVE
                return True
            if mode & TOK_EXCLREQ:
                self.count = count | TOK_EXCLREQ
                self.reqcpu = td.cpu
            return False
        if count & TOK_EXCLUSIVE:
            if not mine:
                return False
        elif count & mode and len(td.toks) == 1 and not self._bypass():
            return False
        self.count = count + TOK_INCR
        return True

    def _bypass(self) -> bool:
        """Whether a pending exclusive request is to be ignored: its CPU is stopped."""
        return self.reqcpu is None or bool(self.reqcpu.stopped)

    def _release(self, ref: TokRef) -> None:
        if self.ref is ref:
            self.ref = None
            self.count &= ~TOK_EXCLUSIVE
        else:
            self.count -= TOK_INCR

    def _kick(self) -> None:
        """Let exactly the CPUs that missed this token elect again."""
        if self.count & TOK_EXCLUSIVE:
            return
        mask = self.stalled
        self.stalled = 0
        for cpu in self.lwkt.cpus:
            if mask >> cpu.cpuid & 1:
                cpu.kick_stalled()

    async def _contended(self, ref: TokRef, td: Thread) -> None:
        """The token is held elsewhere: let the scheduler take all tokens of the thread."""
        if ref.count & TOK_EXCLUSIVE and any(r.tok is self for r in td.toks[:-1]):
            td.toks.pop()
            panic(f"token {self.name}: {td} holds it shared and wants it exclusively")
        td.wmesg = self.name
        self.collisions += 1
        self.stalled |= 1 << td.cpu.cpuid
        ktr = self.lwkt.ktr_tokens
        if ktr.mask:
            ktr.log_cpu(td.cpu.cpuid, self.ktr_fail, self.name, td.name)
        td.toks_have = len(td.toks) - 1
        try:
            await switch()
        except BaseException:
            self._give_up(ref, td)
            raise
        if ktr.mask:
            ktr.log_cpu(td.cpu.cpuid, self.ktr_succ, self.name, td.name)

    def _give_up(self, ref: TokRef, td: Thread) -> None:
        """The thread is being ended, or was not allowed to wait: take the reference back."""
        if td.toks and td.toks[-1] is ref:
            td.toks.pop()
            if td.toks_have is None and (self.ref is ref or not ref.count & TOK_EXCLUSIVE):
                self._release(ref)
            td.toks_have = None
            self.count &= ~TOK_EXCLREQ
            if self.stalled:
                self._kick()


class _NoWait:
    """``with tok.nowait():``; raises `Block` before anything has happened."""

    __slots__ = ("shared", "tok")

    def __init__(self, tok: Token, shared: bool) -> None:
        self.tok = tok
        self.shared = shared

    def __enter__(self) -> Token:
        tok = self.tok
        if not (tok.trytoken_shared() if self.shared else tok.trytoken()):
            raise Block(tok.wait, tok.name)
        return tok

    def __exit__(self, *exc: object) -> None:
        self.tok.reltoken()


def _overflow(td: Thread) -> None:
    panic(f"lwkt_gettoken: {td} already holds {LWKT_MAXTOKENS} tokens")


def lwkt_getalltokens(td: Thread) -> bool:
    """Take all tokens of a suspended thread in one step, or none of them.

    On failure the thread's wait message names the token that was missing, and its CPU will be
    kicked when that one is released. Counterpart: lwkt_getalltokens.
    """
    toks = td.toks
    for done, ref in enumerate(toks):
        tok = ref.tok
        if not tok._try(ref, td, ref.count):
            tok.collisions += 1
            tok.stalled |= 1 << td.cpu.cpuid
            td.wmesg = tok.name
            for undo in reversed(toks[:done]):
                undo.tok._release(undo)
            return False
    td.toks_have = None
    if td.wmesg:
        td.wmesg = ""
    return True


def lwkt_relalltokens(td: Thread) -> None:
    """Release all tokens a thread holds, last first; it is about to suspend.

    Counterpart: lwkt_relalltokens.
    """
    have = td.toks_have
    toks = td.toks if have is None else td.toks[:have]
    for ref in reversed(toks):
        tok = ref.tok
        tok._release(ref)
        if tok.stalled:
            tok._kick()
    td.toks_have = None


def lwkt_token_swap() -> None:
    """Exchange the two tokens taken last, so that they can be released out of order.

    Two references to one token stay as they are. Counterpart: lwkt_token_swap.
    """
    td = _thread.curthread
    toks = td.toks
    if len(toks) < 2:
        panic(f"lwkt_token_swap: {td} holds {len(toks)} tokens")
    if toks[-1].tok is not toks[-2].tok:
        toks[-1], toks[-2] = toks[-2], toks[-1]


@attrs.frozen
class TokenSetStatistics:
    """What `TokenSet.statistics` returns."""

    collisions: int
    pool_made: int
    tokens: tuple[TokenStatistics, ...]


class TokenSet:
    """The well-known tokens of a machine and its pool.

    Pool tokens serialise things that come and go: any object maps to one of 16384 by its address.
    Counterpart: the globals of kern/lwkt_token.c.
    """

    __slots__ = (
        "_pool", "dev_token", "kvm_token", "lwkt", "mp_token", "pmap_token", "sigio_token",
        "tty_token", "vm_token", "vmspace_token", "vnode_token",
    )  # fmt: skip

    def __init__(self, lwkt: Lwkt) -> None:
        self.lwkt = lwkt
        self.mp_token = Token(lwkt, "mp")
        self.pmap_token = Token(lwkt, "pmap")
        self.dev_token = Token(lwkt, "dev")
        self.vm_token = Token(lwkt, "vm")
        self.vmspace_token = Token(lwkt, "vmspace")
        self.kvm_token = Token(lwkt, "kvm")
        self.sigio_token = Token(lwkt, "sigio")
        self.tty_token = Token(lwkt, "tty")
        self.vnode_token = Token(lwkt, "vnode")
        self._pool: dict[int, Token] = {}

    def __iter__(self) -> Iterator[Token]:
        for name in WELL_KNOWN:
            yield getattr(self, f"{name}_token")

    def token_pool_lookup(self, key: Any) -> Token:
        """The pool token of an object (by identity) or an address.

        Counterpart: lwkt_token_pool_lookup.
        """
        ptr = key if isinstance(key, int) else id(key)
        hash1 = (ptr + (ptr >> 18)) % _POOL_PRIME1
        hash2 = ((ptr >> 8) + (ptr >> 24)) % _POOL_PRIME2
        index = (hash1 ^ hash2) & (LWKT_POOL_TOKENS - 1)
        tok = self._pool.get(index)
        if tok is None:
            tok = self._pool[index] = Token(self.lwkt, "pool")
        return tok

    async def getpooltoken(self, key: Any) -> Token:
        """Take the pool token of an object. Counterpart: lwkt_getpooltoken."""
        tok = self.token_pool_lookup(key)
        await tok.gettoken()
        return tok

    def relpooltoken(self, key: Any) -> None:
        """Release the pool token of an object. Counterpart: lwkt_relpooltoken."""
        self.token_pool_lookup(key).reltoken()

    @ddb_show("tokens")
    def db_tok_all(self) -> list[str]:
        """The well-known tokens: owner, collisions, name."""
        return [
            f"tok={tok.name} tr_owner={tok.ref.owner if tok.ref else None} "
            f"t_collisions={tok.collisions}"
            for tok in self
        ]

    def statistics(self) -> TokenSetStatistics:
        """All well-known tokens, and the sum over those and the pool."""
        pool = self._pool.values()
        known = tuple(tok.statistics() for tok in self)
        return TokenSetStatistics(
            collisions=sum(t.collisions for t in known) + sum(t.collisions for t in pool),
            pool_made=len(self._pool),
            tokens=known,
        )


def lwkt_token_holder(tok: Token) -> Thread | None:
    """The running thread that holds ``tok`` exclusively, None if nobody does."""
    ref = tok.ref
    return ref.owner if ref is not None and not ref.owner.flags & TDF.EXITING else None
