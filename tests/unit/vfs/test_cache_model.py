"""The namecache against a plain tree of dictionaries, driven by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from dfuser.libkern.errno import KError
from dfuser.vfs.cache import CINV, NcHandle
from dfuser.vfs.syscalls import (
    kern_lookup,
    kern_mkdir,
    kern_mknod,
    kern_rename,
    kern_rmdir,
    kern_stat,
    kern_unlink,
)
from dfuser.vfs.vop import RENAME_EXCHANGE
from tests.unit.vfs.dictfs import ROOT, check, make_vfs

RENAMES = st.sampled_from([0, RENAME_EXCHANGE])
NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])


class NamecacheMachine(RuleBasedStateMachine):
    """Random operations; the model is dictionaries of inode numbers and of dictionaries."""

    dirs = Bundle("dirs")
    held = Bundle("held")

    @initialize(target=dirs)
    def start(self) -> Any:
        """An empty file system."""
        self.vfs = make_vfs()
        self.model: dict[bytes, Any] = {}
        self.paths: list[tuple[NcHandle, Any]] = []
        return ()

    # A directory is named by its path at creation; it may have moved or gone since.

    def place(self, path: tuple[bytes, ...]) -> tuple[NcHandle, dict[bytes, Any]] | None:
        """Where a path leads now, in the cache (held) and in the model; None if it does not."""
        model: Any = self.model
        nch = self.vfs.cache.hold(self.vfs.rootnch)
        for name in path:
            model = model.get(name) if isinstance(model, dict) else None
            try:
                found = kern_lookup(self.vfs, nch, name, ROOT)
            except KError:
                found = None
            assert (found is not None) == (model is not None)
            if found is not None:
                self.vfs.cache.hold(found)
            self.vfs.cache.drop_nch(nch)
            if found is None:
                return None
            nch = found
        if not isinstance(model, dict):
            self.vfs.cache.drop_nch(nch)
            return None
        return nch, model

    def attempt(self, fn: Any, *args: Any) -> bool:
        """Whether the kernel did it."""
        try:
            fn(self.vfs, *args, ROOT)
        except KError:
            return False
        return True

    @rule(target=dirs, path=dirs, name=NAMES)
    def mkdir(self, path: tuple[bytes, ...], name: bytes) -> Any:
        """mkdir succeeds exactly where the name is free."""
        found = self.place(path)
        if found is None:
            return multiple()
        nch, model = found
        ok = self.attempt(kern_mkdir, nch, name, 0o755)
        assert ok == (name not in model)
        if ok:
            model[name] = {}
        self.vfs.cache.drop_nch(nch)
        return (*path, name) if ok else multiple()

    @rule(path=dirs, name=NAMES)
    def create(self, path: tuple[bytes, ...], name: bytes) -> None:
        """mknod succeeds exactly where the name is free."""
        found = self.place(path)
        if found is None:
            return
        nch, model = found
        ok = self.attempt(kern_mknod, nch, name, 0o100644, 0, 0)
        assert ok == (name not in model)
        if ok:
            got = kern_lookup(self.vfs, nch, name, ROOT)
            assert got is not None
            model[name] = kern_stat(self.vfs, got).fileid
        self.vfs.cache.drop_nch(nch)

    @rule(path=dirs, name=NAMES)
    def unlink(self, path: tuple[bytes, ...], name: bytes) -> None:
        """unlink removes files only."""
        found = self.place(path)
        if found is None:
            return
        nch, model = found
        assert self.attempt(kern_unlink, nch, name) == isinstance(model.get(name), int)
        if isinstance(model.get(name), int):
            del model[name]
        self.vfs.cache.drop_nch(nch)

    @rule(path=dirs, name=NAMES)
    def rmdir(self, path: tuple[bytes, ...], name: bytes) -> None:
        """rmdir removes empty directories only."""
        found = self.place(path)
        if found is None:
            return
        nch, model = found
        assert self.attempt(kern_rmdir, nch, name) == (model.get(name) == {})
        if model.get(name) == {}:
            del model[name]
        self.vfs.cache.drop_nch(nch)

    @rule(fpath=dirs, fname=NAMES, tpath=dirs, tname=NAMES, flags=RENAMES)
    def rename(
        self, fpath: tuple[bytes, ...], fname: bytes, tpath: tuple[bytes, ...], tname: bytes,
        flags: int,
    ) -> None:  # fmt: skip
        """rename and exchange do what the model allows."""
        f, t = self.place(fpath), self.place(tpath)
        if f is not None and t is not None:
            want = self._model_rename(f[1], fname, t[1], tname, flags)
            assert self.attempt(kern_rename, f[0], fname, t[0], tname, flags) == want
        for found in (f, t):
            if found is not None:
                self.vfs.cache.drop_nch(found[0])

    def _model_rename(self, f: Any, fname: bytes, t: Any, tname: bytes, flags: int) -> bool:
        """The same on dictionaries; whether it may be done."""
        src, dst = f.get(fname), t.get(tname)
        if src is None or (flags and dst is None):
            return False
        if self._inside(src, t) or self._inside(dst, f):
            return False
        if f is t and fname == tname:
            return True
        if flags:
            f[fname], t[tname] = dst, src
            return True
        if dst is not None and (isinstance(dst, dict) != isinstance(src, dict) or dst == src == 0):
            return False
        if isinstance(dst, dict) and dst:
            return False
        del f[fname]
        t[tname] = src
        return True

    def _inside(self, tree: Any, target: Any) -> bool:
        """Whether ``target`` is ``tree`` or below it."""
        if not isinstance(tree, dict):
            return False
        return tree is target or any(self._inside(sub, target) for sub in tree.values())

    @rule(target=held, path=dirs)
    def hold(self, path: tuple[bytes, ...]) -> Any:
        """Somebody stands in a directory from now on."""
        found = self.place(path)
        if found is None:
            return multiple()
        return found

    @rule(entry=consumes(held))
    def drop(self, entry: Any) -> None:
        """He leaves."""
        self._check_path(entry)
        self.vfs.cache.drop_nch(entry[0])

    def _check_path(self, entry: Any) -> None:
        """A held directory has the path at which the model has its dictionary, or none."""
        nch, tree = entry
        want = self._find(self.model, tree, b"")
        try:
            got = self.vfs.cache.fullpath(nch)
        except KError:
            got = None
        assert got == (want if want != b"" else b"/")

    def _find(self, at: Any, tree: Any, path: bytes) -> bytes | None:
        if at is tree:
            return path
        for name, sub in at.items():
            if isinstance(sub, dict):
                found = self._find(sub, tree, path + b"/" + name)
                if found is not None:
                    return found
        return None

    @rule()
    def inval(self) -> None:
        """Everything cached becomes void."""
        self.vfs.cache.inval(self.vfs.rootnch.ncp, CINV.CHILDREN)

    @rule(count=st.integers(1, 20))
    def reclaim(self, count: int) -> None:
        """Memory is short."""
        self.vfs.vnodes.freesomevnodes(count)

    @rule()
    def limits(self) -> None:
        """The limits change, and vnlru looks."""
        self.vfs.cache.limits.set_negfactor(1 + self.vfs.cache.limits.ncnegfactor * 2 % 97)
        self.vfs.cache.hysteresis(False)

    @invariant()
    def counters(self) -> None:
        """All counters are what a walk finds."""
        if hasattr(self, "vfs"):
            check(self.vfs)

    def teardown(self) -> None:
        """Every file of the model is there under its number."""
        if hasattr(self, "vfs"):
            self._compare(self.vfs.rootnch, self.model)

    def _compare(self, nch: NcHandle, model: dict[bytes, Any]) -> None:
        self.vfs.cache.hold(nch)
        for name in (b"a", b"b", b"c", b"d"):
            got = kern_lookup(self.vfs, nch, name, ROOT)
            want = model.get(name)
            assert (got is not None) == (want is not None)
            if got is not None and isinstance(want, dict):
                self._compare(got, want)
            elif got is not None:
                assert kern_stat(self.vfs, got).fileid == want
        self.vfs.cache.drop_nch(nch)


TestNamecache = NamecacheMachine.TestCase
TestNamecache.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
