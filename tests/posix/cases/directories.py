"""mkdir, rmdir, and what readdir shows while the directory changes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from tests.posix import linux
from tests.posix.case import case, refuse, same, table, true
from tests.posix.tools import (
    ALICE,
    BOB,
    Child,
    Signpost,
    as_user,
    folder,
    give,
    mode_of,
    opened,
    put,
)

KINDS = {
    stat.S_IFREG: 8,
    stat.S_IFDIR: 4,
    stat.S_IFLNK: 10,
    stat.S_IFIFO: 1,
    stat.S_IFSOCK: 12,
}


def _names(descriptor: int, size: int = 32768) -> list[bytes]:
    return [e.name for e in linux.read_directory(descriptor, size) if e.name not in (b".", b"..")]


@table({"0022": (0o022, 0o755), "0000": (0, 0o777), "0077": (0o077, 0o700)})
def umask_takes_bits(d: Path, mask: int, want: int) -> None:
    """A new directory has mode 0777 without the bits of the umask."""
    os.umask(mask)
    os.mkdir(d / "dir")
    same(mode_of(d / "dir"), want, "mode")


@case()
def sticky_reaches_mkdir(d: Path) -> None:
    """mkdir honours the sticky bit in the mode."""
    os.umask(0)
    os.mkdir(d / "dir", 0o1777)
    same(mode_of(d / "dir"), 0o1777, "mode")


@case()
def link_counts(d: Path) -> None:
    """A directory has two links and one more for each subdirectory."""
    counts = [d.stat().st_nlink]
    for name in ("a", "b"):
        os.mkdir(d / name)
        counts.append(d.stat().st_nlink)
    os.rmdir(d / "a")
    counts.append(d.stat().st_nlink)
    same(counts, [2, 3, 4, 3], "link counts")
    same((d / "b").stat().st_nlink, 2, "links of an empty directory")


@case()
def link_counts_after_rename(d: Path) -> None:
    """Moving a directory moves one link from the old parent to the new one."""
    folder(folder(d / "from") / "x")
    folder(d / "to")
    os.rename(d / "from" / "x", d / "to" / "x")
    same(((d / "from").stat().st_nlink, (d / "to").stat().st_nlink), (2, 3), "link counts")


@case()
def rmdir_not_empty(d: Path) -> None:
    """A directory with a file, a directory or a link in it stays: ENOTEMPTY."""
    for make in (lambda p: put(p), lambda p: folder(p), lambda p: p.symlink_to("x")):
        inner = folder(d / "dir") / "x"
        make(inner)
        refuse((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, d / "dir")
        (inner.rmdir if inner.is_dir() else inner.unlink)()
        os.rmdir(d / "dir")


@case()
def rmdir_dots(d: Path) -> None:
    """rmdir of . is EINVAL, of .. ENOTEMPTY."""
    folder(d / "dir")
    refuse(errno.EINVAL, os.rmdir, str(d / "dir") + "/.")
    refuse((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, str(d / "dir") + "/..")


@case()
def mkdir_dots(d: Path) -> None:
    """mkdir of . and .. is EEXIST."""
    for name in (".", ".."):
        refuse(errno.EEXIST, os.mkdir, f"{d}/{name}")


@case()
def rmdir_of_a_link(d: Path) -> None:
    """rmdir of a link to a directory is ENOTDIR and harms nothing."""
    folder(d / "dir")
    (d / "link").symlink_to("dir")
    refuse(errno.ENOTDIR, os.rmdir, d / "link")
    true((d / "dir").is_dir(), "the directory went")


@case()
def dots_are_listed(d: Path) -> None:
    """. and .. are listed once, with the directory's and the parent's inode numbers."""
    folder(d / "dir")
    with opened(d / "dir", os.O_RDONLY) as f:
        entries = linux.read_directory(f)
    found = {entry.name: (entry.inode, entry.kind) for entry in entries}
    same(len(entries), 2, "entries")
    want = {b".": ((d / "dir").stat().st_ino, 4), b"..": (d.stat().st_ino, 4)}
    same(found, want, "entries")


@case()
def dots_resolve(d: Path) -> None:
    """dir/. is the directory and dir/.. the parent, after a rename too."""
    folder(d / "a")
    folder(folder(d / "b") / "sub")
    os.rename(d / "b" / "sub", d / "a" / "sub")
    same(os.stat(f"{d}/a/sub/..").st_ino, (d / "a").stat().st_ino, "..")
    same(os.stat(f"{d}/a/sub/.").st_ino, (d / "a" / "sub").stat().st_ino, ".")


@case()
def types_and_inodes_are_listed(d: Path) -> None:
    """d_type and d_ino of each entry are what lstat says."""
    put(d / "file")
    folder(d / "dir")
    (d / "link").symlink_to("file")
    os.mkfifo(d / "fifo")
    with opened(d, os.O_RDONLY) as f:
        entries = {e.name: e for e in linux.read_directory(f)}
    for path in d.iterdir():
        found, entry = path.lstat(), entries[os.fsencode(path.name)]
        want = (found.st_ino, KINDS[stat.S_IFMT(found.st_mode)])
        same((entry.inode, entry.kind), want, path.name)


@table({"512": (512,), "4096": (4096,), "big": (1 << 20,)}, limit=30.0)
def large_listing_is_exact(d: Path, size: int) -> None:
    """3,000 names are listed once each whatever the buffer's size."""
    names = {f"file-with-a-name-{n:05d}".encode() for n in range(3000)}
    for name in names:
        os.mknod(os.path.join(os.fsencode(d), name), 0o600)
    with opened(d, os.O_RDONLY) as f:
        found = _names(f, size)
    same((len(found), set(found) == names), (3000, True), "names listed")


@case()
def rewind(d: Path) -> None:
    """lseek to 0 shows the directory as it is now, new names included."""
    put(d / "a")
    with opened(d, os.O_RDONLY) as f:
        same(_names(f), [b"a"], "first listing")
        put(d / "b")
        os.lseek(f, 0, os.SEEK_SET)
        same(sorted(_names(f)), [b"a", b"b"], "second listing")


@case()
def cookies_lead_back(d: Path) -> None:
    """Seeking to the cookie of any entry continues with the one after it."""
    for n in range(200):
        put(d / f"f{n}")
    with opened(d, os.O_RDONLY) as f:
        entries = linux.read_directory(f, 1024)
        for index in (0, 1, 2, 50, 100, 150, len(entries) - 2):
            os.lseek(f, entries[index].cookie, os.SEEK_SET)
            rest = [e.name for e in linux.read_directory(f, 1024)]
            same(rest, [e.name for e in entries[index + 1 :]], f"after entry {index}")


@case()
def cookies_survive_removal(d: Path) -> None:
    """A cookie still works when the entries before it are gone."""
    for n in range(300):
        put(d / f"f{n:03d}")
    with opened(d, os.O_RDONLY) as f:
        entries = linux.read_directory(f, 1024)
        for entry in entries[:150]:
            if entry.name not in (b".", b".."):
                os.unlink(os.path.join(os.fsencode(d), entry.name))
        os.lseek(f, entries[149].cookie, os.SEEK_SET)
        rest = [e.name for e in linux.read_directory(f, 1024)]
    same(rest, [e.name for e in entries[150:]], "entries after the cookie")


@case(limit=30.0)
def removal_while_listing(d: Path) -> None:
    """Removing each name as it is listed empties the directory (rm -r's way)."""
    for n in range(2000):
        put(d / f"f{n:04d}")
    with opened(d, os.O_RDONLY) as f:
        while batch := linux.getdents(f, 2048):
            for entry in batch:
                if entry.name not in (b".", b".."):
                    os.unlink(os.path.join(os.fsencode(d), entry.name))
    same(os.listdir(d), [], "names left")


@case(limit=30.0)
def churn_while_listing(d: Path) -> None:
    """Names that stay are listed exactly once while others come and go."""
    stay = {f"stay-{n:04d}".encode() for n in range(600)}
    for n in range(600):
        put(d / f"stay-{n:04d}")
        put(d / f"old-{n:04d}")
    with opened(d, os.O_RDONLY) as f:
        seen, step = [], 0
        while batch := linux.getdents(f, 1024):
            seen += [entry.name for entry in batch]
            for n in range(step * 10, min(step * 10 + 10, 600)):
                (d / f"old-{n:04d}").unlink()
                put(d / f"new-{n:04d}")
            step += 1
    kept = [name for name in seen if name in stay]
    same((len(kept), set(kept) == stay), (600, True), "names that stayed")
    same(len(seen), len(set(seen)), "a name was listed twice")


@case(limit=30.0)
def churn_by_another_process(d: Path) -> None:
    """The same while another process renames and removes without pause."""
    stay = {f"stay-{n:03d}".encode() for n in range(300)}
    for name in stay:
        put(d / os.fsdecode(name))
    started = Signpost()

    def churn() -> None:
        for n in range(100_000):
            (d / f"x{n}").touch()
            os.rename(d / f"x{n}", d / f"y{n}")
            os.unlink(d / f"y{n}")
            if n == 0:
                started.raise_()

    child = Child(churn)
    started.wait()
    try:
        for _ in range(20):
            with opened(d, os.O_RDONLY) as f:
                kept = [name for name in _names(f, 512) if name in stay]
            same((len(kept), set(kept) == stay), (300, True), "names that stayed")
    finally:
        child.kill()


@case(limit=30.0)
def depth_of_300(d: Path) -> None:
    """300 directories in one another, made and left step by step, with .. leading back."""
    os.chdir(d)
    top = os.stat(".").st_ino
    for _ in range(300):
        os.mkdir("deeper")
        os.chdir("deeper")
    Path("file").write_bytes(b"down here")
    same(Path("file").read_bytes(), b"down here", "bytes at the bottom")
    os.unlink("file")
    for _ in range(300):
        os.chdir("..")
        os.rmdir("deeper")
    same(os.stat(".").st_ino, top, "where .. leads")


@case()
def working_directory_removed(d: Path) -> None:
    """In a removed directory nothing can be made or found, and getcwd is ENOENT."""
    os.chdir(folder(d / "dir"))
    os.rmdir(d / "dir")
    refuse(errno.ENOENT, os.getcwd)
    refuse(errno.ENOENT, os.mkdir, "x")
    refuse(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY)
    same(os.listdir("."), [], "names in it")
    same(os.stat(".").st_nlink, 0, "links")


@case()
def removed_while_open(d: Path) -> None:
    """A removed directory that is open lists nothing (ENOENT will do) and takes no names."""
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        os.rmdir(d / "dir")
        with contextlib.suppress(FileNotFoundError):
            same(linux.read_directory(f), [], "entries")
        refuse(errno.ENOENT, os.mkdir, "x", dir_fd=f)


@case()
def removed_name_can_be_used_again(d: Path) -> None:
    """A new directory of the same name is a new one, and empty."""
    put(folder(d / "dir") / "f")
    with opened(d / "dir", os.O_RDONLY) as f:
        os.unlink(d / "dir" / "f")
        os.rmdir(d / "dir")
        folder(d / "dir")
        true(os.fstat(f).st_ino != (d / "dir").stat().st_ino, "the inode is the same")


@case(root=True)
def set_group_id_is_inherited(d: Path) -> None:
    """Below a set-group-ID directory files take its group and directories the bit as well."""
    give(folder(d / "dir"), ALICE, 0o2775)
    put(d / "dir" / "f")
    os.mkdir(d / "dir" / "sub")
    same((d / "dir" / "f").stat().st_gid, ALICE.gid, "group of the file")
    found = (d / "dir" / "sub").stat()
    same((found.st_gid, bool(found.st_mode & stat.S_ISGID)), (ALICE.gid, True), "the directory")


@case(root=True)
def set_group_id_file_by_a_stranger(d: Path) -> None:
    """A set-group-ID executable made by somebody outside the group loses the bit."""
    give(folder(d / "dir"), ALICE, 0o2777)
    os.umask(0)

    def make() -> None:
        os.close(os.open(d / "dir" / "f", os.O_CREAT | os.O_WRONLY, 0o2775))

    as_user(BOB, make)
    found = (d / "dir" / "f").stat()
    same((found.st_gid, found.st_mode & 0o7777), (ALICE.gid, 0o775), "group and mode")


@case(root=True)
def listing_needs_read(d: Path) -> None:
    """Listing needs r, entering needs x."""
    folder(d / "x_only", 0o711)
    folder(d / "r_only", 0o744)
    put(d / "x_only" / "f")
    refuse(errno.EACCES, as_user, ALICE, os.listdir, d / "x_only")
    as_user(ALICE, os.stat, d / "x_only" / "f")
    same(as_user(ALICE, os.listdir, d / "r_only"), [], "listing")
    refuse(errno.EACCES, as_user, ALICE, os.chdir, d / "r_only")


@case()
def relative_to_a_descriptor(d: Path) -> None:
    """The *at calls work below a descriptor, and follow the directory when it is renamed."""
    with opened(folder(d / "dir"), os.O_RDONLY) as f:
        os.rename(d / "dir", d / "moved")
        os.mkdir("sub", dir_fd=f)
        os.symlink("target", "link", dir_fd=f)
        os.rename("sub", "sub2", src_dir_fd=f, dst_dir_fd=f)
        same(os.readlink("link", dir_fd=f), "target", "link")
        os.unlink("link", dir_fd=f)
    same(os.listdir(d / "moved"), ["sub2"], "names")


@case()
def fsync_of_a_directory(d: Path) -> None:
    """fsync and fdatasync of a directory succeed."""
    put(d / "f")
    with opened(d, os.O_RDONLY) as f:
        os.fsync(f)
        os.fdatasync(f)
