"""The sysctl tree: live values, access, types, dynamic names, order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EINVAL, EISDIR, ENOENT, ENOTDIR, EPERM, KError
from dfuser.libkern.sysctl import (
    ANYBODY,
    CTL_MAXNAME,
    INT,
    LONG,
    NODE,
    OPAQUE,
    PRISON,
    RD,
    RW,
    SECURE,
    SKIP,
    STRING,
    TOP_LEVEL,
    UINT,
    WR,
    CtlFlag,
    CtlType,
    Sysctl,
    SysctlTree,
    declarations,
)
from dfuser.libkern.ucred import Ucred

ROOT = Ucred.root()
USER = Ucred.of(1000, 100)
JAILED = Ucred.of(0, 0, prison=object())


class Inner:
    def __init__(self) -> None:
        self.hits = 7


class Cache:
    sysctls = (
        Sysctl("vfs.cache", "The cache", kind=NODE),
        Sysctl("vfs.cache.num", "Entries", attr="num", kind=LONG),
        Sysctl("vfs.cache.limit", "Most entries", attr="limit", flags=RW, minimum=16, maximum=99),
        Sysctl("vfs.cache.hits", "Hits", attr="inner.hits", kind=UINT, flags=RW),
    )
    sysctl_name = Sysctl("vfs.cache.name", "Name", attr="name", kind=STRING, flags=RW, maximum=8)
    sysctl_flush = Sysctl(
        "vfs.cache.flush", "Flush", getter=lambda _: 0, setter="flush", flags=RW | SKIP
    )
    sysctl_on = Sysctl("vfs.cache.on", "On", attr="on", flags=RW, minimum=0, maximum=1)
    sysctl_total = Sysctl("vfs.cache.total", "Sum", getter="total")
    sysctl_secret = Sysctl("vfs.cache.secret", "Write only", attr="num", flags=WR)
    sysctl_raw = Sysctl("vfs.cache.raw", "Bytes", getter=lambda _: b"\x01\xff", kind=OPAQUE)

    def __init__(self) -> None:
        self.num = 3
        self.limit = 50
        self.name = "nc"
        self.on = True
        self.inner = Inner()
        self.flushed: list[int] = []

    def flush(self, value: int) -> None:
        if value == 13:
            raise KError(EINVAL, "unlucky")
        self.flushed.append(value)

    def total(self) -> int:
        return self.num + self.limit


class Cpu:
    sysctl_switches = Sysctl(lambda cpu: f"lwkt.cpu{cpu.cpuid}.switches", "Switches", attr="n")

    def __init__(self, cpuid: int) -> None:
        self.cpuid = cpuid
        self.n = cpuid * 10


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def tree(cache: Cache) -> SysctlTree:
    tree = SysctlTree()
    tree.register(cache)
    return tree


def refusal(tree: SysctlTree, name: str, text: str | int | bytes, cred: Ucred | None) -> int:
    """The errno of a write that must fail."""
    with pytest.raises(KError) as caught:
        tree.set(name, text, cred)
    return caught.value.errno


def test_values_are_read_live(tree: SysctlTree, cache: Cache) -> None:
    # What if the tree kept a copy and showed yesterday's number?
    assert tree.get("vfs.cache.num") == "3"
    cache.num = 4
    assert tree.get("vfs.cache.num") == "4"
    assert tree.value("vfs.cache.num") == 4
    assert tree.get("vfs.cache.total") == "54"
    assert tree.get("vfs.cache.raw") == "01ff"
    assert tree.get("vfs.cache.on") == "1"


def test_writes_reach_the_object(tree: SysctlTree, cache: Cache) -> None:
    # What if a write changed the tree and not the thing?
    tree.set("vfs.cache.limit", "0x20\n", ROOT)
    tree.set("vfs.cache.hits", "017", ROOT)
    tree.set("vfs.cache.name", "hot\n", ROOT)
    tree.set("vfs.cache.on", b"0", ROOT)
    tree.set("vfs.cache.flush", 1, ROOT)
    assert (cache.limit, cache.inner.hits, cache.name, cache.on) == (32, 15, "hot", False)
    assert cache.on is False
    assert cache.flushed == [1]


@pytest.mark.parametrize(
    "text", ["", "x", "1 2", "0x", "08", "1e3", "15", "100", "--20", "9" * 30, "20\0", b"\xff"]
)
def test_bad_values_change_nothing(tree: SysctlTree, cache: Cache, text: str) -> None:
    # What if a value that is no number, or out of range, were stored?
    assert refusal(tree, "vfs.cache.limit", text, ROOT) == EINVAL
    assert cache.limit == 50


def test_bad_strings_change_nothing(tree: SysctlTree, cache: Cache) -> None:
    # What if a string were cut silently, or a NUL went in?
    assert refusal(tree, "vfs.cache.name", "ninechars", ROOT) == EINVAL
    assert refusal(tree, "vfs.cache.name", "a\0b", ROOT) == EINVAL
    assert cache.name == "nc"


def test_a_setter_may_refuse(tree: SysctlTree, cache: Cache) -> None:
    # What if the object's own check were ignored?
    assert refusal(tree, "vfs.cache.flush", 13, ROOT) == EINVAL
    assert cache.flushed == []


def test_who_may_write(tree: SysctlTree, cache: Cache) -> None:
    # What if a user could change the kernel, or a jailed root the host's?
    assert refusal(tree, "vfs.cache.num", "1", ROOT) == EPERM
    assert refusal(tree, "vfs.cache.limit", "20", USER) == EPERM
    assert refusal(tree, "vfs.cache.limit", "20", JAILED) == EPERM
    assert cache.limit == 50
    tree.set("vfs.cache.limit", "20")
    assert cache.limit == 20


def test_flags_open_the_door() -> None:
    # What if ANYBODY, PRISON and SECURE were decoration?
    class Knobs:
        sysctls = (
            Sysctl("kern.any", "", attr="v", flags=RW | ANYBODY),
            Sysctl("kern.jail", "", attr="v", flags=RW | PRISON),
            Sysctl("kern.secure", "", attr="v", flags=RW | SECURE),
        )
        v = 0

    tree = SysctlTree()
    tree.register(Knobs())
    tree.set("kern.any", 1, USER)
    tree.set("kern.jail", 2, JAILED)
    assert refusal(tree, "kern.jail", 2, USER) == EPERM
    tree.set("kern.secure", 3, ROOT)
    tree.set("kern.securelevel", 1, ROOT)
    assert refusal(tree, "kern.secure", 4, ROOT) == EPERM
    assert refusal(tree, "kern.secure", 4, None) == EPERM
    assert refusal(tree, "kern.securelevel", 0, ROOT) == EPERM
    assert tree.statistics().refused == 3


def test_a_room_above_decides_about_privilege() -> None:
    # What if the tree asked uid 0 where the privilege model says otherwise?
    tree = SysctlTree(lambda cred, oid: cred.uid == 1000 and oid.word == "limit")
    cache = Cache()
    tree.register(cache)
    tree.set("vfs.cache.limit", 20, USER)
    assert refusal(tree, "vfs.cache.limit", 30, ROOT) == EPERM
    assert cache.limit == 20


def test_names_that_do_not_exist(tree: SysctlTree) -> None:
    # What if a wrong name raised something that is not an errno?
    for name, error in (
        ("vfs.cache.nope", ENOENT),
        ("nope", ENOENT),
        ("vfs..cache", ENOENT),
        ("vfs.cache.num.deeper", ENOTDIR),
        ("vfs.cache", EISDIR),
        ("", EISDIR),
        ("vfs.cache.secret", EPERM),
    ):
        with pytest.raises(KError) as caught:
            tree.get(name)
        assert caught.value.errno == error, name
    assert refusal(tree, "vfs.cache", "1", ROOT) == EISDIR
    assert refusal(tree, "vfs.cache.raw", "1", ROOT) == EPERM


def test_dynamic_names_come_and_go() -> None:
    # What if two CPUs fought for one name, or an empty node stayed behind?
    tree = SysctlTree()
    before = [oid.name for oid in tree.walk(nodes=True)]
    cpus = [Cpu(n) for n in range(3)]
    for cpu in cpus:
        tree.register(cpu)
    assert [oid.get() for oid in tree.walk("lwkt")] == ["0", "10", "20"]
    tree.unregister(cpus[1])
    assert [oid.name for oid in tree.walk("lwkt")] == ["lwkt.cpu0.switches", "lwkt.cpu2.switches"]
    with pytest.raises(KError) as caught:
        tree.unregister(cpus[1])
    assert caught.value.errno == ENOENT
    for cpu in (cpus[0], cpus[2]):
        tree.unregister(cpu)
    assert [oid.name for oid in tree.walk(nodes=True)] == before


def test_registration_is_all_or_nothing(tree: SysctlTree, cache: Cache) -> None:
    # What if half of an object's names stayed after the other half clashed?
    class Clash:
        sysctls = (
            Sysctl("vfs.fresh", "", attr="v"),
            Sysctl("vfs.cache.num", "", attr="v"),
        )
        v = 1

    before = tree.statistics()
    for wrong in (Clash(), cache):
        with pytest.raises(ValueError, match=r"taken|twice"):
            tree.register(wrong)
    assert tree.statistics() == before
    with pytest.raises(KError):
        tree.find("vfs.fresh")


@pytest.mark.parametrize(
    "names",
    [
        ["kern." + ".".join("abcdefghijkl")],
        ["kern..x"],
        ["kern.sp ace"],
        ["kern"],
        ["kern.a", "kern.a.b"],
        ["kern.a.b", "kern.a"],
        ["kern.a", "kern.a"],
        ["kern.securelevel.x"],
    ],
)
def test_malformed_names_are_found_at_boot(names: list[str]) -> None:
    # What if a name were a leaf and a node at once, or deeper than a MIB can be?
    kind = type("Odd", (), {"v": 1, "s": tuple(Sysctl(n, "", attr="v") for n in names)})
    with pytest.raises(ValueError, match="sysctl name"):
        SysctlTree().register(kind())
    assert len(["kern", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]) == CTL_MAXNAME


def test_mib_numbers(tree: SysctlTree) -> None:
    # What if a program that knows kern = 1 asked by number?
    for word, (number, _) in TOP_LEVEL.items():
        assert tree.name2oid(word) == (number,)
    assert tree.name2oid("kern.securelevel") == (1, 9)
    for oid in tree.walk():
        assert tree.oid2name(oid.mib) == oid.name
        assert tree.find(oid.name) is oid
    with pytest.raises(KError):
        tree.oid2name((1, 77777))


def test_a_number_belongs_to_one_word() -> None:
    # What if two declarations asked for the same fixed number?
    class Second:
        sysctls = (Sysctl("kern.other", "", attr="v", number=9),)
        v = 1

    with pytest.raises(ValueError, match="number 9"):
        SysctlTree().register(Second())


def test_walk_order_and_skip(tree: SysctlTree) -> None:
    # What if sysctl -a came out in another order each time, or showed what is flagged SKIP?
    mibs = [oid.mib for oid in tree.walk()]
    assert mibs == sorted(mibs)
    names = [oid.name for oid in tree.walk("vfs.cache")]
    assert "vfs.cache.flush" not in names
    assert [oid.name for oid in tree.walk("vfs.cache.flush")] == ["vfs.cache.flush"]
    nodes = [oid.name for oid in tree.walk(nodes=True) if oid.is_node]
    assert nodes[:3] == ["kern", "vm", "vfs"]
    assert tree.find("vfs.cache").descr == "The cache"
    assert tree.find("vfs.cache").kind is NODE
    assert tree.find("vfs.cache.num").fmt == "L"


def test_counters_against_an_observer(tree: SysctlTree) -> None:
    # What if the tree's own figures were wrong?
    leaves = list(tree.walk())
    hidden = 1  # vfs.cache.flush
    stats = tree.statistics()
    assert stats.leaves == len(leaves) + hidden
    assert stats.nodes == sum(1 for oid in tree.walk(nodes=True) if oid.is_node)
    readable = [oid for oid in leaves if oid.flags & RD]
    for oid in readable:
        oid.get()
    tree.set("vfs.cache.limit", 20, ROOT)
    after = tree.statistics()
    assert (after.reads, after.writes) == (len(readable), 1)


def test_two_kernels_share_nothing() -> None:
    # What if a value set in one kernel appeared in another?
    trees = [SysctlTree(), SysctlTree()]
    caches = [Cache(), Cache()]
    for tree, cache in zip(trees, caches, strict=True):
        tree.register(cache)
    trees[0].set("vfs.cache.limit", 20)
    assert trees[1].get("vfs.cache.limit") == "50"


def test_a_subclass_replaces_a_declaration() -> None:
    # What if both the parent's and the child's variable hung in the tree?
    class Better(Cache):
        sysctl_total = Sysctl("vfs.cache.total", "Better sum", getter=lambda _: 1)

    assert len(declarations(Better)) == len(declarations(Cache))
    tree = SysctlTree()
    tree.register(Better())
    assert tree.get("vfs.cache.total") == "1"


def test_declarations_must_say_where() -> None:
    # What if a variable had no place to be read from or stored to?
    with pytest.raises(ValueError, match="neither attr nor getter"):
        Sysctl("kern.x", "")
    with pytest.raises(ValueError, match="writable"):
        Sysctl("kern.x", "", getter="x", flags=RW)
    assert CtlFlag.RW == CtlFlag.RD | CtlFlag.WR


RANGES = {
    INT: (-(2**31), 2**31 - 1),
    UINT: (0, 2**32 - 1),
    LONG: (-(2**63), 2**63 - 1),
    CtlType.ULONG: (0, 2**64 - 1),
    CtlType.U8: (0, 255),
    CtlType.S16: (-32768, 32767),
}


@given(st.sampled_from(sorted(RANGES)), st.integers(-(2**65), 2**65), st.sampled_from("dxo"))
def test_number_kinds_against_their_ranges(kind: CtlType, value: int, base: str) -> None:
    # What if a kind took a number its C type cannot hold, or misread a base?
    low, high = RANGES[kind]
    decl = Sysctl("kern.x", "", attr="v", kind=kind, flags=RW)
    sign = "-" if value < 0 else ""
    prefix = {"d": "", "x": "0x", "o": "0"}[base]
    text = f"{sign}{prefix}{abs(value):{base}}"
    if low <= value <= high:
        assert decl.check(text) == value
        assert decl.check(value) == value
    else:
        with pytest.raises(KError):
            decl.check(text)
