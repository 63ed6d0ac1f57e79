"""Hard links, symbolic links, unlink."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.posix import linux
from tests.posix.case import NotApplicable, case, refuse, same, table, true
from tests.posix.tools import ALICE, BOB, as_user, folder, give, opened, put


@case()
def hard_link_is_the_same_file(d: Path) -> None:
    """Two names, one inode, two links, one content."""
    put(d / "a", b"abc")
    os.link(d / "a", d / "b")
    a, b = (d / "a").stat(), (d / "b").stat()
    same((a.st_ino, a.st_nlink), (b.st_ino, 2), "inode and links")
    (d / "b").write_bytes(b"changed")
    same((d / "a").read_bytes(), b"changed", "bytes")


@case()
def unlink_leaves_the_other_name(d: Path) -> None:
    """Removing one name leaves the other, with one link."""
    put(d / "a", b"abc")
    os.link(d / "a", d / "b")
    os.unlink(d / "a")
    same(((d / "b").stat().st_nlink, (d / "b").read_bytes()), (1, b"abc"), "the other name")
    refuse(errno.ENOENT, os.stat, d / "a")


@case(limit=30.0)
def thousand_links(d: Path) -> None:
    """1,000 links to one file are counted, and counted down again."""
    put(d / "f")
    for n in range(999):
        os.link(d / "f", d / f"l{n}")
    same((d / "f").stat().st_nlink, 1000, "links")
    for n in range(999):
        os.unlink(d / f"l{n}")
    same((d / "f").stat().st_nlink, 1, "links left")


@case()
def link_of_a_directory(d: Path) -> None:
    """A directory takes no second name: EPERM."""
    refuse(errno.EPERM, os.link, folder(d / "dir"), d / "new")


@case()
def link_of_a_symlink(d: Path) -> None:
    """link(2) links the symbolic link itself; AT_SYMLINK_FOLLOW links what it names."""
    put(d / "f")
    (d / "s").symlink_to("f")
    linux.linkat(linux.AT_FDCWD, d / "s", d / "hard", 0)
    true(stat.S_ISLNK((d / "hard").lstat().st_mode), "not the symbolic link")
    same((d / "s").lstat().st_nlink, 2, "links of the symbolic link")
    linux.linkat(linux.AT_FDCWD, d / "s", d / "file", linux.AT_SYMLINK_FOLLOW)
    same((d / "f").stat().st_nlink, 2, "links of the file")


@case()
def link_to_itself(d: Path) -> None:
    """Linking a name to itself is EEXIST."""
    put(d / "f")
    refuse(errno.EEXIST, os.link, d / "f", d / "f")


@case()
def link_to_another_file_system(d: Path) -> None:
    """A link or a rename across file systems is EXDEV."""
    here = put(d / "f").stat().st_dev
    others = (Path(name) for name in ("/dev/shm", "/tmp", "/var/tmp"))
    other = next((path for path in others if path.stat().st_dev != here), None)
    if other is None:
        raise NotApplicable("no other file system to write to")
    refuse(errno.EXDEV, os.link, d / "f", other / d.name)
    refuse(errno.EXDEV, os.rename, d / "f", other / d.name)


@case(root=True)
def link_into_a_closed_directory(d: Path) -> None:
    """Linking needs write permission where the new name goes: EACCES."""
    give(put(d / "f"), ALICE)
    refuse(errno.EACCES, as_user, ALICE, os.link, d / "f", folder(d / "dir") / "new")


@case()
def link_of_a_fifo(d: Path) -> None:
    """A fifo may have two names."""
    os.mkfifo(d / "a")
    os.link(d / "a", d / "b")
    same((d / "b").stat().st_nlink, 2, "links")


@table({"1": (1,), "255": (255,), "1023": (1023,), "4095": (4095,)})
def symlink_length(d: Path, length: int) -> None:
    """A symbolic link keeps its text, and st_size is its length."""
    text = ("a" * 50 + "/") * (length // 51) + "b" * (length % 51)
    os.symlink(text, d / "s")
    same((os.readlink(d / "s"), (d / "s").lstat().st_size), (text, length), "text and size")


@case()
def symlink_of_4096(d: Path) -> None:
    """A link text of 4,096 bytes is ENAMETOOLONG."""
    refuse(errno.ENAMETOOLONG, os.symlink, "a/" * 2048, d / "s")


@case()
def symlink_empty(d: Path) -> None:
    """An empty link text is ENOENT."""
    refuse(errno.ENOENT, os.symlink, "", d / "s")


@case()
def symlink_bytes(d: Path) -> None:
    """A link text is bytes, not text."""
    text = bytes(range(1, 256)).replace(b"/", b"")
    os.symlink(text, os.fsencode(d / "s"))
    same(os.readlink(os.fsencode(d / "s")), text, "bytes")


@case()
def symlink_modes(d: Path) -> None:
    """A symbolic link has mode 0777 and one link."""
    os.symlink("x", d / "s")
    found = (d / "s").lstat()
    same((stat.S_IMODE(found.st_mode), found.st_nlink), (0o777, 1), "mode and links")


@case()
def symlink_resolution(d: Path) -> None:
    """Relative links start from their directory, absolute ones from the root, .. included."""
    put(folder(d / "dir") / "f", b"abc")
    (d / "dir" / "up").symlink_to("../dir/f")
    (d / "absolute").symlink_to(d / "dir")
    same((d / "absolute" / "up").read_bytes(), b"abc", "bytes")


@case()
def readlink_of_a_file(d: Path) -> None:
    """readlink of what is no link is EINVAL."""
    refuse(errno.EINVAL, os.readlink, put(d / "f"))
    refuse(errno.EINVAL, os.readlink, d)


@case()
def unlink_of_a_symlink(d: Path) -> None:
    """unlink removes the link and leaves the target."""
    put(d / "f", b"abc")
    (d / "s").symlink_to("f")
    os.unlink(d / "s")
    same((d / "f").read_bytes(), b"abc", "target")


@case()
def unlinked_but_open(d: Path) -> None:
    """A file without names lives as long as a descriptor: read, write, stat, truncate, chmod."""
    with opened(put(d / "f", b"abc"), os.O_RDWR) as f:
        os.unlink(d / "f")
        same(os.fstat(f).st_nlink, 0, "links")
        os.pwrite(f, b"defg", 3)
        same(os.pread(f, 10, 0), b"abcdefg", "bytes")
        os.ftruncate(f, 2)
        os.fchmod(f, 0o600)
        os.utime(f, (1, 1))
        os.fsync(f)
        same((os.fstat(f).st_size, os.listdir(d)), (2, []), "size and names")


@case()
def unlinked_name_can_be_used_again(d: Path) -> None:
    """A new file of the same name does not share anything with the old, open one."""
    with opened(put(d / "f", b"old"), os.O_RDWR) as f:
        os.unlink(d / "f")
        put(d / "f", b"new")
        same((os.pread(f, 3, 0), (d / "f").read_bytes()), (b"old", b"new"), "old and new")
        true(os.fstat(f).st_ino != (d / "f").stat().st_ino, "same inode number")


@case()
def replaced_but_open(d: Path) -> None:
    """A file that rename replaced lives on for its descriptors."""
    put(d / "new", b"new")
    with opened(put(d / "f", b"old"), os.O_RDWR) as f:
        os.rename(d / "new", d / "f")
        same((os.pread(f, 3, 0), os.fstat(f).st_nlink), (b"old", 0), "the old file")


@case()
def unlinked_cannot_be_linked_again(d: Path) -> None:
    """A file whose last name is gone cannot get a new one: ENOENT."""
    with opened(put(d / "f"), os.O_RDONLY) as f:
        os.unlink(d / "f")
        path = f"/proc/self/fd/{f}"
        refuse(errno.ENOENT, linux.linkat, linux.AT_FDCWD, path, d / "n", linux.AT_SYMLINK_FOLLOW)


@case()
def unlinked_executable_goes_on(d: Path) -> None:
    """A program whose file was removed keeps running."""
    program = d / "cat"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    reader, writer = os.pipe()
    back, out = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, out, 1)]
    pid = os.posix_spawn(program, ["cat"], {}, file_actions=actions)
    os.close(reader)
    os.close(out)
    os.unlink(program)
    os.write(writer, b"still here")
    os.close(writer)
    same(os.read(back, 100), b"still here", "what it said")
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "exit status")


@case(root=True)
def unlink_needs_the_directory_only(d: Path) -> None:
    """Who may write the directory may remove files of others, mode 0 included."""
    put(give(folder(d / "dir"), ALICE) / "f", mode=0)
    as_user(ALICE, os.unlink, d / "dir" / "f")


@case(root=True)
def unlink_in_a_closed_directory(d: Path) -> None:
    """Who may not write the directory may not remove even his own file: EACCES."""
    give(put(folder(d / "dir") / "f"), BOB)
    refuse(errno.EACCES, as_user, BOB, os.unlink, d / "dir" / "f")
