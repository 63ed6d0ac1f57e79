"""Resolving entries: asking the file system what a name means, and waiting for the answer.

An entry is resolved below its directory, so the directory must be resolved first. Usually it is
(a directory with cached children keeps its vnode); after an invalidation the way up is resolved
again, the topmost first.

**Waiting.** A file system that cannot answer at once says `Block`. Then the entry is locked for the
time of the wait, and whoever needs the same name meanwhile waits for the first one (sleep "ncplk")
instead of asking the disk again; after debug.nclockwarn the log says so. Nobody gets the answer
from the one who waited: everyone runs his own operation again, and finds the entry resolved or the
answer at hand. A `Block` must be awaited, or the entry stays in the tree unresolved.

Counterpart: cache_resolve, cache_resolve_mp, _cache_lock (kern/vfs_cache.c).
Differs from DragonFly: an entry is locked only while it is waited for, exclusively; those who come
    later share the wait. A destroyed entry is ENOENT, as POSIX has it for what is looked up from a
    removed directory (EINVAL in C).
Token/lock order: an entry is waited for holding no other.
Invariants: NCF.LOCKED is set exactly while one thread is in the file system's own wait; ``locked``
    of the cache counts such entries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from dfuser.libkern.errno import ENOENT, EXDEV, KKASSERT, KError
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

from .namecache import NCF, NamecacheEntry

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

    from .cache import NameCache
    from .mount import Mount

Waiter: TypeAlias = Callable[[], Awaitable[int]]


def resolve(cache: NameCache, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> int:
    """Make sure that an entry is resolved, asking the file system if need be.

    Counterpart: cache_resolve.

    Returns:
        0 for a positive, ENOENT for a negative entry; also for a name that does not exist and
        must not be remembered (the file system raised ENOENT; the entry stays unresolved).

    Raises:
        KError: ENOENT, the entry is destroyed; EXDEV, it hangs on nothing; or the file
            system's own error, and the entry stays unresolved.
        Block: the file system must wait.
    """
    if not ncp.flags & NCF.UNRESOLVED:
        return ncp.error
    if ncp.flags & NCF.DESTROYED:
        raise KError(ENOENT)
    if ncp is mount.rootncp:
        return _resolve_mp(cache, ncp, mount)
    par = ncp.parent
    if par is None:
        raise KError(EXDEV)
    if par.vp is None:
        _resolve_chain(cache, par, mount, cred)
    dvp = par.vp
    if dvp is None:
        raise KError(ENOENT)
    if ncp.flags & NCF.LOCKED:
        raise Block(_waiter(cache, ncp), "ncplk")
    cache.miss += 1
    try:
        dvp.ops.use.vop_nresolve(dvp, ncp, cred)
    except Block as block:
        raise _blocked(cache, ncp, block) from None
    except KError as error:
        if error.errno != ENOENT or not ncp.flags & NCF.UNRESOLVED:
            raise
        return ENOENT
    KKASSERT(not ncp.flags & NCF.UNRESOLVED, "vop_nresolve left the entry unresolved")
    if cache.ktr.mask:
        cache.ktr.log(cache.ktr_resolve, ncp.name, ncp.error)
    return ncp.error


def _resolve_chain(cache: NameCache, ncp: NamecacheEntry, mount: Mount, cred: Ucred) -> None:
    """Resolve the unresolved directories above, the topmost first."""
    chain: list[NamecacheEntry] = []
    cur: NamecacheEntry | None = ncp
    while cur is not None and cur.vp is None:
        if cur.flags & NCF.DESTROYED:
            raise KError(ENOENT)
        chain.append(cur)
        if cur is mount.rootncp:
            break
        cur = cur.parent
    for entry in reversed(chain):
        entry.refs += 1
    try:
        for entry in reversed(chain):
            if resolve(cache, entry, mount, cred):
                raise KError(ENOENT)
    finally:
        for entry in chain:
            cache.drop(entry)


def _resolve_mp(cache: NameCache, ncp: NamecacheEntry, mount: Mount) -> int:
    """Resolve the root entry of a mount. Counterpart: cache_resolve_mp."""
    vp = mount.ops.vfs_root(mount)
    if ncp.flags & NCF.UNRESOLVED:
        cache.setvp(ncp, vp)
    vp.rele()
    return 0


def _blocked(cache: NameCache, ncp: NamecacheEntry, block: Block) -> Block:
    """Wrap a file system's `Block` so that the entry is locked while it is waited for."""
    cache.waits += 1
    if cache.ktr.mask:
        cache.ktr.log(cache.ktr_wait, ncp.name)
    ncp.refs += 1

    async def wait() -> int:
        ncp.flags |= NCF.LOCKED
        cache.locked += 1
        try:
            return await block.wait()
        finally:
            ncp.flags &= ~NCF.LOCKED
            cache.locked -= 1
            wakeup(ncp)
            cache.drop(ncp)

    return Block(wait, block.wmesg, block.exclusive)


def _waiter(cache: NameCache, ncp: NamecacheEntry) -> Waiter:
    """What a second one who needs a locked entry waits for; says so after nclockwarn."""
    ncp.refs += 1

    async def wait() -> int:
        warned = False
        try:
            while ncp.flags & NCF.LOCKED:
                await tsleep(ncp, 0, "ncplk", cache.nclockwarn)
                if ncp.flags & NCF.LOCKED and not warned:
                    warned = True
                    name = ncp.name.decode("utf-8", "replace")
                    cache.vfs.msgbuf.kprintf(f"[diagnostic] cache_lock: blocked on {name}\n")
            return 0
        finally:
            cache.drop(ncp)

    return wait
