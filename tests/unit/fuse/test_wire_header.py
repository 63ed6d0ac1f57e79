"""Every structure and number of the codec against the kernel header, through a C compiler.

A C program, made here from the layouts, prints the size of each structure, offset and size of each
member, and a sample record; the same must come out of Python. ``DFUSER_FUSE_HEADER=path`` takes
another header than the installed one. What the header is too old to know is declared here, so that
a compiler has judged it in any case.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dfuser.fuse.wire import const, ext, flags, inputs, notify, outputs
from dfuser.fuse.wire.layout import Layout
from dfuser.fuse.wire.operations import OPERATIONS

HEADER = Path(os.environ.get("DFUSER_FUSE_HEADER", "/usr/include/linux/fuse.h"))
pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing"),
    pytest.mark.skipif(not HEADER.exists(), reason=f"{HEADER} is missing"),
]
LAYOUTS = [
    layout
    for module in (inputs, outputs, ext, notify)
    for layout in vars(module).values()
    if isinstance(layout, Layout)
]
#: Layouts that are only the beginning of their structure.
PARTIAL = {"SETXATTR_IN_COMPAT", "ENTRY_HEAD", "ATTR_HEAD", "STATX_HEAD"}
NAMES = {
    id(layout): name
    for module in (inputs, outputs, ext, notify)
    for name, layout in vars(module).items()
    if isinstance(layout, Layout)
}
#: Members whose name in C is not the record's.
MEMBERS = {
    "fuse_batch_forget_in.number": "count",
    "fuse_removemapping_in.number": "count",
    "fuse_notify_prune_out.number": "count",
    **{f"fuse_lk_in.{m}": f"lk.{m}" for m in ("start", "end", "type", "pid")},
    **{
        f"fuse_statx.{t}_{part}": f"{t}.tv_{part}"
        for t in ("atime", "btime", "ctime", "mtime")
        for part in ("sec", "nsec")
    },
}
#: Structures that older headers lack, by the minor version that has them.
NEWER = {
    "fuse_sx_time": (39, "int64_t tv_sec; uint32_t tv_nsec; int32_t rest;"),
    "fuse_statx": (
        39,
        "uint32_t mask, blksize; uint64_t attributes; uint32_t nlink, uid, gid; uint16_t mode, gap;"
        "uint64_t ino, size, blocks, attributes_mask;"
        "struct fuse_sx_time atime, btime, ctime, mtime;"
        "uint32_t rdev_major, rdev_minor, dev_major, dev_minor; uint64_t gap2[14];",
    ),
    "fuse_statx_in": (
        39, "uint32_t getattr_flags, gap; uint64_t fh; uint32_t sx_flags, sx_mask;",
    ),
    "fuse_statx_out": (
        39,
        "uint64_t attr_valid; uint32_t attr_valid_nsec, flags; uint64_t gap[2];"
        "struct fuse_statx stat;",
    ),
    "fuse_supp_groups": (38, "uint32_t nr_groups; uint32_t groups[];"),
    "fuse_copy_file_range_out": (45, "uint64_t bytes_copied;"),
    "fuse_notify_prune_out": (45, "uint32_t count, gap; uint64_t gap2;"),
}  # fmt: skip
#: Members that older headers call reserved, at the place where they are now.
NEW_MEMBERS = {
    ("fuse_open_out", "backing_id"): "padding",
    ("fuse_init_out", "max_stack_depth"): "unused[0]",
    ("fuse_init_out", "request_timeout"): None,
}


def text() -> str:
    """The header."""
    return HEADER.read_text()


def minor() -> int:
    """The protocol version of the header."""
    found = re.search(r"#define FUSE_KERNEL_MINOR_VERSION (\d+)", text())
    assert found
    return int(found[1])


def member(layout: Layout, name: str) -> str | None:
    """The C expression for a member, or None if this header has no word for it."""
    key = layout.cname, name
    if key in NEW_MEMBERS and not re.search(rf"\b{name};", text()):
        return NEW_MEMBERS[key]
    return MEMBERS.get(f"{layout.cname}.{name}", name)


def compiled(tmp_path: Path, body: str) -> list[str]:
    """The lines that a C program prints which includes the header."""
    source = tmp_path / "probe.c"
    declared = "".join(
        f"struct {name} {{ {fields} }};\n"
        for name, (_since, fields) in NEWER.items()
        if f"struct {name} {{" not in text()
    )
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include <sys/ioctl.h>\n"
        f'#include "{HEADER}"\n{declared}'
        "static void dump(const void *p, size_t n) {\n"
        '  for (size_t k = 0; k < n; k++) printf("%02x", ((const unsigned char *)p)[k]);\n'
        '  printf("\\n");\n}\n'
        f"int main(void) {{\n{body}\nreturn 0;\n}}\n"
    )
    program = tmp_path / "probe"
    subprocess.run(["gcc", "-w", "-O0", "-o", program, source], check=True, capture_output=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


def test_sizes_and_offsets(tmp_path: Path) -> None:
    # What if a member lies elsewhere than we think, or a structure has another size?
    body, expected = [], []
    for layout in LAYOUTS:
        partial = NAMES[id(layout)] in PARTIAL
        if not partial:
            body.append(f'printf("{layout.cname} %zu\\n", sizeof(struct {layout.cname}));')
            expected.append(f"{layout.cname} {layout.size}")
        for name, offset, size in layout.fields() if layout.record is not tuple else ():
            c_name = member(layout, name)
            if c_name is None:
                continue
            body.append(
                f'printf("{layout.cname}.{name} %zu %zu\\n", offsetof(struct {layout.cname}, '
                f"{c_name}), sizeof(((struct {layout.cname} *)0)->{c_name}));"
            )
            expected.append(f"{layout.cname}.{name} {offset} {size}")
    assert compiled(tmp_path, "\n".join(body)) == expected
    assert len({layout.cname for layout in LAYOUTS}) > 60


def sample(layout: Layout) -> dict[str, int]:
    """A value for each member, different in each byte, that fits signed and unsigned ones."""
    return {
        name: int.from_bytes(bytes((k * 16 + at) % 127 + 1 for at in range(size)), "little")
        for k, (name, _offset, size) in enumerate(layout.fields())
    }


def test_sample_records(tmp_path: Path) -> None:
    # What if a member had the right place and the wrong width, sign or byte order?
    body, expected = [], []
    for layout in LAYOUTS:
        if NAMES[id(layout)] in PARTIAL or layout.record is tuple:
            continue
        values = sample(layout)
        names = {name: member(layout, name) for name in values}
        if None in names.values():
            continue
        body.append(f"{{ struct {layout.cname} s; memset(&s, 0, sizeof s);")
        body += [f"s.{names[name]} = {value}ull;" for name, value in values.items()]
        body.append(f'printf("{layout.cname} "); dump(&s, sizeof s); }}')
        expected.append(f"{layout.cname} {layout.pack(*values.values()).hex()}")
    assert compiled(tmp_path, "\n".join(body)) == expected


def test_entry_holds_its_attributes(tmp_path: Path) -> None:
    # What if the tail of a packed entry were no struct fuse_attr_out after all?
    lines = compiled(
        tmp_path,
        'printf("%zu %zu %zu %zu %zu %zu %zu\\n", sizeof(struct fuse_entry_out),'
        "offsetof(struct fuse_entry_out, attr), offsetof(struct fuse_entry_out, attr_valid),"
        "sizeof(struct fuse_attr_out), offsetof(struct fuse_attr_out, attr),"
        "sizeof(struct fuse_direntplus), sizeof(struct fuse_dirent));"
        'printf("%zu %zu\\n", sizeof(struct fuse_statx_out),'
        "offsetof(struct fuse_statx_out, stat));",
    )
    assert lines == ["128 40 24 104 16 152 24", "288 32"]


def test_numbers(tmp_path: Path) -> None:
    # What if an opcode, a notification, a flag or a limit had another number?
    pairs: dict[str, int] = {
        **{f"FUSE_{op.name}": op for op in const.Opcode},
        **{f"FUSE_NOTIFY_{code.name}": code for code in const.Notify},
        **{f"FUSE_{flag.name}": flag.bit for flag in flags.FLAGS},
        **{k: v for k, v in vars(flags).items() if k.startswith("FUSE_")},
        **{k: v for k, v in vars(const).items() if re.match(r"(FUSE|FATTR|FOPEN|CUSE)_", k)},
    }
    del pairs["FUSE_KERNEL_MINOR_VERSION"], pairs["FUSE_NAME_MAX"]
    known = {name: value for name, value in pairs.items() if re.search(rf"\b{name}\b", text())}
    body = [f'printf("{name} %llu\\n", (unsigned long long)({name}));' for name in known]
    got = dict(line.split() for line in compiled(tmp_path, "\n".join(body)))
    mask = 0xFFFFFFFF
    wrong = {
        name: (value, got[name])
        for name, value in known.items()
        # 1 << 31 is a negative int in C.
        if int(got[name]) != value and (value != 1 << 31 or int(got[name]) & mask != value)
    }
    assert not wrong
    if minor() >= const.FUSE_KERNEL_MINOR_VERSION:
        assert known == pairs
    assert len(known) > 130


def test_nothing_is_left_out() -> None:
    # What if the header had an opcode, a notification or a flag that the tables lack?
    found = re.findall(r"^\s+FUSE_(\w+)\s*=\s*\d+,", text(), re.MULTILINE)
    names = {op.name for op in const.Opcode} | {f"NOTIFY_{code.name}" for code in const.Notify}
    others = {"MAX_NR_SECCTX", "EXT_GROUPS", "INIT_BSWAP_RESERVED"}
    rings = {name for name in found if name.startswith("IO_URING_CMD")}
    assert minor() <= const.FUSE_KERNEL_MINOR_VERSION
    assert set(found) - others - rings <= names
    start, end = text().index("#define FUSE_ASYNC_READ"), text().index("CUSE INIT request")
    bits = set(re.findall(r"#define FUSE_(\w+)\s+\(1", text()[start:end]))
    assert bits <= {flag.name for flag in flags.FLAGS}


def test_since() -> None:
    # What if the table told another version than the header's own history?
    history = text()[: text().index("#ifndef _LINUX_FUSE_H")]
    since: dict[str, int] = {}
    version = 0
    for line in history.splitlines():
        if found := re.match(r" \*\s+7\.(\d+)", line):
            version = int(found[1])
        for name in re.findall(r"FUSE_(\w+)", line):
            since.setdefault(name, version)
    rows: list[tuple[str, int]] = [(flag.name, flag.since) for flag in flags.FLAGS]
    rows += [(row.opcode.name, row.since) for row in OPERATIONS]
    rows += [(f"NOTIFY_{rule.code.name}", rule.since) for rule in notify.NOTIFICATIONS]
    late = {"HAS_EXPIRE_ONLY", "CREATE_SUPP_GROUP"}
    known = [(name, number) for name, number in rows if name in since and name not in late]
    assert [(name, since[name]) for name, _ in known] == known
    assert len(known) > 40


def test_statx_is_the_systems(tmp_path: Path) -> None:
    # What if struct fuse_statx were not bit for bit what statx(2) fills?
    stat = Path("/usr/include/linux/stat.h")
    if not stat.exists():
        pytest.skip("linux/stat.h is missing")
    layout = outputs.STATX
    body: list[str] = []
    names: dict[str, int] = {}
    for name, offset, _size in layout.fields():
        c_name = "stx_" + MEMBERS.get(f"fuse_statx.{name}", name)
        names[name] = offset
        body.append(f'printf("{name} %zu\\n", offsetof(struct statx, {c_name}));')
    source = tmp_path / "statx.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{stat}"\n'
        f"int main(void) {{ {''.join(body)} return (int)(sizeof(struct statx) != {layout.size}); }}"
    )
    subprocess.run(["gcc", "-w", "-o", tmp_path / "statx", source], check=True)
    lines = subprocess.run([tmp_path / "statx"], check=True, capture_output=True, text=True).stdout
    assert lines.splitlines() == [f"{name} {offset}" for name, offset in names.items()]
