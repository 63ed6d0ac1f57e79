"""The verbs on disk images: what they print, what they copy, how they end."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from dfuser.cli.exits import ExitCode
from dfuser.cli.image import Meter, Source, named, parse_source, text, when
from dfuser.cli.ls import columns
from dfuser.cli.main import run
from dfuser.vfs.hammer2.fsck import Fsck
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import BrefType, Check, ObjType
from dfuser.vfs.hammer2.ondisk.geometry import header_offset
from dfuser.vfs.hammer2.ondisk.keys import dirhash
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.builder import Builder, split_devices
from tests.unit.vfs.hammer2.images import SparseImage

from .conftest import Dfuser

TEXT = b"some text, again and again " * 9000
ODD = b"latin \xe9\x01\xff"
ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden images as files, each `name.img`."""
    folder = tmp_path_factory.mktemp("golden")
    for name in images.NAMES:
        images.load(name).write_to(folder / f"{name}.img")
    return folder


def write(image: SparseImage, path: Path) -> Path:
    """An image as a file."""
    image.write_to(path)
    return path


def flip(path: Path, offset: int) -> None:
    """Damage one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def world(builder: Builder) -> Blockref:
    """A PFS with one of each."""
    big = builder.inode(below=builder.file(TEXT), size=len(TEXT), mode=0o4755, mtime=10**15 + 7)
    two = builder.inode(below=b"two names", nlinks=2)
    odd = builder.inode(below=b"odd")
    link = builder.inode(objtype=ObjType.SOFTLINK, below=b"../" + ODD)
    fifo = builder.inode(objtype=ObjType.FIFO, below=())
    sock = builder.inode(objtype=ObjType.SOCKET, below=())
    hidden = builder.inode(below=b"hidden")
    directory = builder.inode(
        objtype=ObjType.DIRECTORY, iparent=1, mode=0o500, below=[
            builder.dirent(b"two", two.key), builder.dirent(b".hidden", hidden.key),
            builder.dirent(b"link", link.key, ObjType.SOFTLINK),
        ],
    )  # fmt: skip
    return builder.pfs(
        b"ROOT",
        [
            big, two, odd, link, fifo, sock, hidden, directory, builder.dirent(b"big", big.key),
            builder.dirent(b"one", two.key), builder.dirent(ODD, odd.key),
            builder.dirent(b"pipe", fifo.key, ObjType.FIFO),
            builder.dirent(b"sock", sock.key, ObjType.SOCKET),
            builder.dirent(b"dir", directory.key, ObjType.DIRECTORY),
        ],
    )  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A small volume with one of each."""
    builder = Builder()
    return write(builder.finish(world(builder)), tmp_path / "disk.img")


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("disk.img", Source("disk.img", None, None)),
        ("disk.img@ROOT", Source("disk.img", b"ROOT", None)),
        ("disk.img:/", Source("disk.img", None, b"/")),
        ("disk.img@ROOT:/a:/b@c", Source("disk.img", b"ROOT", b"/a:/b@c")),
        ("vm:1.img", Source("vm:1.img", None, None)),
        ("me@host/disk.img", Source("me@host/disk.img", None, None)),
        ("me@host/disk.img@DATA:/x", Source("me@host/disk.img", b"DATA", b"/x")),
        (r"a\@b.img@R:/c\@d", Source("a@b.img", b"R", rb"/c\@d")),
        (r"odd\:/name.img:/x", Source("odd:/name.img", None, b"/x")),
        ("back\\\\@R:/x", Source("back\\", b"R", b"/x")),
        (r"c\d.img", Source(r"c\d.img", None, None)),
        ("d.img:/l\udce9", Source("d.img", None, b"/l\xe9")),
        ("d.img@l\udce9", Source("d.img", b"l\xe9", None)),
    ],
)
def test_how_images_labels_and_paths_are_told_apart(given: str, want: Source) -> None:
    # What if a colon or an @ in the name of a file were taken for a separator?
    assert parse_source(given) == want


def test_how_names_are_shown() -> None:
    # What if a name could play with the terminal, or lost its bytes in JSON?
    assert text(ODD) == "latin \\xe9\\x01\\xff"
    assert named(b"plain") == {"name": "plain"}
    assert named(ODD)["name_hex"] == ODD.hex()
    assert when(0) == "1970-01-01T00:00:00.000000Z"
    assert when(1 << 63) == str(1 << 63)
    assert list(columns([b"a", b"bb", b"ccc"], 10)) == [b"a    ccc", b"bb"]


@pytest.mark.parametrize("name", images.NAMES)
def test_info(golden: Path, dfuser: Dfuser, name: str) -> None:
    # What if somebody wants to know what an image is?
    path = golden / f"{name}.img"
    result = dfuser("info", path)
    assert result.code == ExitCode.OK
    assert "in use: the newest intact copy" in result.out
    assert ("has one header" in result.err) == (name != "four_headers")
    [row] = dfuser("info", "--json", path).json["volumes"]
    assert row["size"] == images.load(name).size
    assert {pfs["label"] for pfs in row["pfss"]} >= {"LOCAL"}
    assert row["allocation"]["used"] + row["allocation"]["free"] == row["allocation"]["size"]
    assert sum(copy["used"] for copy in row["headers"]) == 1


def test_info_of_a_torn_header_and_of_several_images(golden: Path, dfuser: Dfuser, tmp_path: Path,
                                                     disk: Path) -> None:  # fmt: skip
    # What if the newest header is torn, and another image is none?
    path = write(images.load("four_headers"), tmp_path / "torn.img")
    flip(path, header_offset(2) + 300)
    result = dfuser("info", path, tmp_path / "gone", disk)
    assert result.code == ExitCode.SOURCE
    assert "has a wrong CRC" in result.out
    assert str(disk) in result.out
    assert "there is no image" in result.err


def manifest(name: str, label: str) -> dict[bytes, str]:
    """The lines of a manifest but the path at their ends, by path."""
    found = {}
    for line in images.manifest_lines(name, label):
        path = images.path_of(line)
        shown = repr(b"./" + path) if path != b"." else repr(path)
        assert line.endswith(shown)
        found[b"" if path == b"." else path] = line.removesuffix(shown).rstrip()
    return found


@pytest.mark.parametrize(("name", "label"), images.MANIFESTS)
def test_ls_gives_the_manifest(golden: Path, dfuser: Dfuser, name: str, label: str) -> None:
    # What if a listing left files out, or had wrong attributes?
    result = dfuser("ls", "-lRa", "--json", f"{golden}/{name}.img@{label}")
    assert result.code == ExitCode.OK
    got = {}
    for row in result.json["files"]:
        name_, where = (bytes.fromhex(row[f"{key}_hex"]) if f"{key}_hex" in row else
                        row[key].encode() for key in ("name", "directory"))  # fmt: skip
        if name_ in (b".", b".."):
            continue
        got[(where.rstrip(b"/") + b"/" + name_)[1:]] = row
    want = manifest(name, label)
    assert got.keys() == want.keys() - {b""}
    for path, row in got.items():
        kind, mode, uid, gid, links, size, mtime = want[path].split(" ")[:7]
        assert (f"{row['mode']:04o}", str(row["uid"]), str(row["gid"])) == (mode, uid, gid)
        assert str(row["modified_usec"]) == mtime
        if kind != "d":
            assert (str(row["links"]), str(row["size"])) == (links, size)


def on_host(path: bytes, line: str) -> str:
    """The line of a manifest for a file of the host; what it cannot keep is taken from `line`."""
    found = os.lstat(path)
    mode, uid, gid = line.split(" ")[1:4]
    links, size, last = str(found.st_nlink), str(found.st_size), "-"
    kind = "f"
    if stat.S_ISDIR(found.st_mode):
        kind, links, size = "d", "-", "-"
    elif stat.S_ISLNK(found.st_mode):
        kind, last = "l", repr(os.readlink(path))
    elif stat.S_ISFIFO(found.st_mode):
        kind = "p"
    else:
        last = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
    if kind != "l":
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
    if ROOT:
        uid, gid = str(found.st_uid), str(found.st_gid)
    return f"{kind} {mode} {uid} {gid} {links} {size} {found.st_mtime_ns // 1000} {last}"


@pytest.mark.parametrize(("name", "label"), images.MANIFESTS)
def test_cp_gives_the_manifest(
    golden: Path, dfuser: Dfuser, tmp_path: Path, name: str, label: str
) -> None:
    # What if a copy were not equal: bytes, modes, times, links, holes?
    out = tmp_path / "out"
    result = dfuser("cp", "-rp", f"{golden}/{name}.img@{label}:/", out)
    assert (result.code, result.err) == (ExitCode.OK, "")
    top = os.fsencode(out)
    want = manifest(name, label)
    paths = {b""}
    for folder, below, files in os.walk(top):
        paths |= {os.path.join(folder, one)[len(top) + 1 :] for one in [*below, *files]}
    assert paths == want.keys()
    for path in paths - {b""}:
        assert on_host(os.path.join(top, path), want[path]) == want[path], path


def test_cat(disk: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    # What if the bytes on stdout were not those of the file?
    capfdbinary.readouterr()
    assert run(["cat", f"{disk}:/big", os.fsdecode(b"%s:/%s" % (os.fsencode(disk), ODD))]) == 0
    assert capfdbinary.readouterr().out == TEXT + b"odd"
    assert run(["cat", f"{disk}@ROOT:/dir/link"]) == 0
    assert capfdbinary.readouterr().out == b"odd"
    assert run(["ls", f"{disk}"]) == 0
    assert capfdbinary.readouterr().out.split(b"\n")[2] == ODD


def test_ls_options(dfuser: Dfuser, disk: Path) -> None:
    # What if the letters did something else than those of ls(1)?
    assert dfuser("ls", f"{disk}:/dir").out.split() == ["link", "two"]
    assert dfuser("ls", "-a", f"{disk}:/dir").out.split() == [".", "..", ".hidden", "link", "two"]
    assert dfuser("ls", "-d", f"{disk}:/dir").out == "/dir\n"
    line = dfuser("ls", "-ld", f"{disk}:/dir").out
    assert line.startswith("dr-x------ ")
    assert line.endswith(" /dir\n")
    [inum, name] = dfuser("ls", "-i1", f"{disk}:/big").out.split()
    assert (int(inum), name) == (1024, "/big")
    long = dfuser("ls", "-l", f"{disk}:/big").out
    assert long.split() == [
        "-rwsr-xr-x", "1", "7", "8", str(len(TEXT)), "2001-09-09T01:46:40", "/big",
    ]  # fmt: skip
    both = dfuser("ls", "-R", f"{disk}:/").out
    assert "\n/dir:\nlink\ntwo\n" in both
    several = dfuser("ls", f"{disk}:/dir", f"{disk}:/").out
    assert several.count(":\n") == 2


def test_cp_of_one_of_each(dfuser: Dfuser, disk: Path, tmp_path: Path) -> None:
    # What if links, FIFOs, sockets or the sticky bits of others came out wrong?
    result = dfuser("cp", "-rp", f"{disk}:/", tmp_path / "new")
    assert (result.code, result.err) == (ExitCode.OK, "")
    out = tmp_path / "new"
    assert (out / "big").read_bytes() == TEXT
    assert (out / "one").stat().st_ino == (out / "dir/two").stat().st_ino
    assert stat.S_ISFIFO((out / "pipe").stat().st_mode)
    assert stat.S_ISSOCK((out / "sock").stat().st_mode)
    assert stat.S_IMODE((out / "dir").stat().st_mode) == 0o500
    assert stat.S_IMODE((out / "big").stat().st_mode) == (0o4755 if ROOT else 0o755)
    assert (out / "big").stat().st_mtime_ns == (10**15 + 7) * 1000
    assert os.readlink(os.fsencode(out / "dir/link")) == b"../" + ODD
    plain = tmp_path / "plain"
    assert dfuser("cp", f"{disk}:/big", plain).code == ExitCode.OK
    assert plain.stat().st_mode & 0o7000 == 0
    again = dfuser("cp", f"{disk}:/one", f"{disk}:/big", out)
    assert (again.code, (out / "one").read_bytes()) == (ExitCode.OK, b"two names")
    os.chmod(out / "dir", 0o700)


def test_cp_never_leaves_its_destination(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if an image has a link and, by the same name, a directory with files to go through it?
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    builder = Builder()
    evil = builder.inode(below=b"evil", nlinks=9)
    link = builder.inode(objtype=ObjType.SOFTLINK, below=os.fsencode(outside))
    inner = builder.inode(
        objtype=ObjType.DIRECTORY,
        below=[builder.dirent(b"file", evil.key), builder.dirent(b"more", evil.key)],
    )
    t = ObjType.DIRECTORY
    dots = [builder.dirent(b"xx", evil.key)._replace(check=bad.ljust(64, b"\0")) for bad in (
        b"..", b"/f")]  # fmt: skip
    other = b"q", b"r"
    names = [
        builder.dirent(b"x", link.key, ObjType.SOFTLINK), builder.dirent(b"x", inner.key, t, 2),
        dots[0], dots[1]._replace(key=dots[1].key + 5),
        *[builder.dirent(name, evil.key) for name in other],
    ]  # fmt: skip
    path = write(
        builder.finish(builder.pfs(b"ROOT", [evil, link, inner, *names])), tmp_path / "evil.img"
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "q").symlink_to(outside / "file")
    result = dfuser("cp", "-r", f"{path}:/", out)
    assert result.code == ExitCode.DAMAGED
    assert "has this name twice" in result.err
    assert sorted(os.listdir(outside)) == ["file"]
    assert (outside / "file").read_bytes() == b"mine"
    assert sorted(os.listdir(out)) == ["q", "r", "x"]
    assert not (out / "q").is_symlink()
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "x").symlink_to(outside)
    builder = Builder()
    file = builder.inode(below=b"evil")
    inner = builder.inode(objtype=t, below=[builder.dirent(b"file", file.key)])
    path = write(
        builder.finish(builder.pfs(b"ROOT", [file, inner, builder.dirent(b"x", inner.key, t)])),
        tmp_path / "second.img",
    )
    assert dfuser("cp", "-r", f"{path}:/", planted).code == ExitCode.OUTPUT
    assert (outside / "file").read_bytes() == b"mine"


def test_damaged_data(dfuser: Dfuser, disk: Path, tmp_path: Path) -> None:
    # What if a piece of a file cannot be read: is the rest there, and does the exit code tell?
    builder = Builder()
    root = world(builder)
    noise = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(8192))
    data = builder.file(noise)
    file = builder.inode(below=data, size=len(noise))
    other = builder.pfs(b"NOISE", [file, builder.dirent(b"noise", file.key)])
    path = write(builder.finish(root, other), tmp_path / "bad.img")
    flip(path, data[1].offset + 77)
    out = tmp_path / "noise"
    result = dfuser("cp", f"{path}@NOISE:/noise", out)
    assert result.code == ExitCode.DAMAGED
    assert result.line == "/noise: bytes 65536 to 131071 cannot be read; left as a hole"
    assert out.read_bytes() == noise[:65536] + bytes(65536) + noise[131072:]
    assert dfuser("hammer2", "show", path).code == ExitCode.OK
    assert dfuser("hammer2", "show", "-v", path).code == ExitCode.DAMAGED


def test_cat_ends_where_the_damage_begins(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # What if the bytes behind a damaged piece were joined to those before it?
    builder = Builder(comp=0)
    noise = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(8192))
    data = builder.file(noise)
    file = builder.inode(below=data, size=len(noise))
    image = builder.finish(builder.pfs(b"ROOT", [file, builder.dirent(b"noise", file.key)]))
    path = write(image, tmp_path / "bad.img")
    flip(path, data[2].offset + 5)
    capfdbinary.readouterr()
    assert run(["cat", f"{path}:/noise"]) == ExitCode.DAMAGED
    out, err = capfdbinary.readouterr()
    assert out == noise[:131072]
    assert b"damaged at byte 131072 of 262144" in err


@pytest.mark.parametrize("name", images.NAMES)
def test_fsck(golden: Path, dfuser: Dfuser, name: str) -> None:
    # What if a check of a whole image said something else than "clean"?
    result = dfuser("fsck", "-q", golden / f"{name}.img")
    if name == "snapshots":
        assert result.code == ExitCode.DAMAGED
        assert result.out.count("orphan") == 4
    else:
        assert result.code == ExitCode.OK
        assert ": clean; " in result.out
    found = dfuser("fsck", "--json", golden / f"{name}.img").json
    assert (found["complete"], found["left_out"]) == (True, 0)
    assert found["clean"] == (name != "snapshots")
    assert found["statistics"]["headers"] in (1, 4)


def test_fsck_of_a_damaged_image(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a program wants to know which file is lost?
    builder = Builder()
    path = write(builder.finish(world(builder)), tmp_path / "bad.img")
    [first] = [b for b in builder.metadata if b.type == BrefType.INODE][:1]
    flip(path, first.offset + 3)
    result = dfuser("fsck", path)
    assert result.code == ExitCode.DAMAGED
    assert "fail check: wrong check code (@ROOT, inode 0x400, block " in result.out
    rows = dfuser("fsck", "--json", path).json["findings"]
    [row] = [row for row in rows if row["kind"] == "check"]
    assert (row["pfs"], row["inode"], row["block"]) == ("ROOT", 1024, first.offset)


def test_a_stopped_fsck_says_what_it_did(
    golden: Path, dfuser: Dfuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if somebody presses Ctrl-C in the middle?
    whole = Fsck.run

    def stopping(self: Fsck) -> object:
        for number, record in enumerate(whole(self)):
            if number == 5:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(Fsck, "run", stopping)
    result = dfuser("fsck", golden / "lz4_xxhash.img")
    assert result.code == ExitCode.SIGNAL + 2
    assert "stopped; until then 1 headers" in result.out
    assert dfuser("fsck", "--json", golden / "lz4_xxhash.img").json["complete"] is False


def test_volumes_of_several_devices(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a device of a volume is missing, or all are there?
    builder = Builder(2 << 30)
    file = builder.inode(below=b"here")
    builder.skip_to((1 << 30) + (4 << 20))
    root = builder.pfs(b"ROOT", [file, builder.dirent(b"f", file.key)])
    zero, one = (
        write(device, tmp_path / f"{device.name}.img")
        for device in split_devices(builder, [1 << 30, 1 << 30], root)
    )
    assert dfuser("cat", "--device", zero, f"{one}:/f").out == "here"
    [row] = dfuser("info", "--json", one, zero).json["volumes"]
    assert [device["number"] for device in row["devices"]] == [0, 1]
    result = dfuser("ls", f"{one}:/")
    assert result.code == ExitCode.SOURCE
    assert "missing: 0" in result.line
    assert "--device" in result.line
    assert "given twice" in dfuser("fsck", "-D", one, one).line


@pytest.mark.parametrize("verb", ["info", "ls", "cat", "cp", "fsck", "pfs-list", "show", "volhdr"])
def test_images_that_are_none(dfuser: Dfuser, tmp_path: Path, golden: Path, verb: str) -> None:
    # What if what should be an image is missing, a directory, a text, cut off, or of tomorrow?
    words = tmp_path / "text"
    words.write_text("no image\n" * 10000)
    empty = tmp_path / "empty"
    empty.touch()
    cut = tmp_path / "cut.img"
    cut.write_bytes((golden / "fresh.img").read_bytes()[: 1 << 20])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    newer = tmp_path / "newer.img"
    builder = Builder()
    write(builder.finish(builder.pfs(b"ROOT", []), version=9), newer)
    for path, told in (
        (tmp_path / "gone", "there is no image"), (tmp_path, "is a directory"),
        (words, "no header has its magic number"), (empty, "too few"), (cut, "is truncated"),
        (pipe, "neither a file nor a disk"), (newer, "newer than"),
    ):  # fmt: skip
        command = [verb] if verb in ("info", "ls", "cat", "cp", "fsck") else ["hammer2", verb]
        target = f"{path}:/x" if verb in ("cat", "cp") else str(path)
        result = dfuser(*command, target, *([tmp_path / "out"] if verb == "cp" else []))
        assert result.code == ExitCode.SOURCE
        assert told in result.line


def test_labels_and_paths_that_are_not_there(
    golden: Path, dfuser: Dfuser, disk: Path, tmp_path: Path
) -> None:
    # What if the label or the path is wrong, or missing?
    result = dfuser("ls", f"{disk}@NONE")
    assert (result.code, result.line) == (
        ExitCode.SOURCE, f"{disk} has no PFS NONE; it has ROOT",
    )  # fmt: skip
    assert dfuser("ls", f"{golden}/fresh.img").code == ExitCode.OK
    missing = dfuser("ls", f"{disk}:/no/such")
    assert (missing.code, missing.line) == (
        ExitCode.SOURCE, "/no/such: No such file or directory",
    )  # fmt: skip
    assert dfuser("ls", f"{disk}:/big/x").line == "/big/x: Not a directory"
    assert dfuser("cat", f"{disk}:/dir").line == "/dir is a directory"
    assert dfuser("cat", f"{disk}").code == ExitCode.USAGE
    assert dfuser("cp", f"{disk}:/dir", tmp_path / "o").line == "/dir is a directory: -r copies it"
    assert "there is no directory" in dfuser("cp", f"{disk}:/big", tmp_path / "a/b").line
    two = dfuser("cp", f"{disk}:/big", f"{disk}:/one", tmp_path / "none")
    assert two.code == ExitCode.USAGE
    assert dfuser("ls", "--header", "2", disk).code == ExitCode.SOURCE
    odd = tmp_path / "a@b.img"
    odd.write_bytes(b"")
    assert "needs a backslash" in dfuser("ls", f"{tmp_path}/x@y/none.img").line
    assert "too few" in dfuser("ls", f"{tmp_path}/a\\@b.img").line
    builder = Builder()
    several = builder.finish(*[builder.pfs(label, []) for label in (b"A", b"B", b"LOCAL")])
    path = write(several, tmp_path / "several.img")
    told = dfuser("ls", path)
    assert told.code == ExitCode.SOURCE
    assert "needs a label" in told.line
    [row] = dfuser("hammer2", "stat", "--json", f"{path}@A").json["files"]
    assert row["compression"] == "lz4:default"


def test_an_older_header_shows_older_files(golden: Path, dfuser: Dfuser) -> None:
    # What if somebody wants to see the volume as it was some flushes ago?
    labels = []
    for number in (3, 0, 1, 2):
        rows = dfuser(
            "hammer2", "pfs-list", "--json", "--header", str(number), golden / "four_headers.img"
        ).json["pfss"]
        labels.append(len(rows))
    assert labels == sorted(labels)
    assert labels[0] < labels[-1] == 7


def test_directives(golden: Path, dfuser: Dfuser) -> None:
    # What if DragonFly's directives are asked for?
    image = golden / "snapshots.img"
    rows = dfuser("hammer2", "pfs-list", image).out.splitlines()
    assert rows[0].split() == ["TYPE", "CLUSTER_ID", "LABEL"]
    assert [row.split()[0] for row in rows[1:]] == ["SNAPSHOT", "MASTER", "MASTER", "MASTER"]
    clid = dfuser("hammer2", "pfs-clid", image, "snap2").out.strip()
    assert clid in rows[1]
    assert dfuser("hammer2", "pfs-fsid", image, "snap2").out.strip() != clid
    assert dfuser("hammer2", "hash", "motd").out == f"{dirhash(b'motd'):016x} motd\n"
    assert dfuser("hammer2", "dhash", "x" * 100).code == ExitCode.OK
    assert dfuser("hammer2", "dhash", "x" * 2000).code == ExitCode.USAGE
    head = dfuser("hammer2", "volhdr", "-a", golden / "four_headers.img").out
    assert head.count("\n    magic") == 4
    assert "wrong" not in head
    show = dfuser("hammer2", "show", "-v", image).out
    assert show.count(" check=") > 1000
    assert '"snap2" inum=' in show
    assert "DAMAGED" not in show
    freemap = dfuser("hammer2", "freemap", image).out.splitlines()
    assert freemap[-1].startswith("allocated: ")
    assert "did you mean 'pfs-list'?" in dfuser("hammer2", "pfs-lst", image).line
    assert dfuser("hammer2", "info", image).code == ExitCode.OK


def test_show_ends_on_a_loop(dfuser: Dfuser, tmp_path: Path) -> None:
    # What if a block, unguarded by a check code, refers to itself?
    builder = Builder(check=Check.DISABLED)
    indirect = builder.indirect([], 0, 60)
    builder.image.write_at(indirect.offset, indirect._replace(keybits=59).pack())
    path = write(builder.finish(builder.pfs(b"ROOT", [indirect])), tmp_path / "loop.img")
    assert "(shown above)" in dfuser("hammer2", "show", path).out
    assert dfuser("ls", "-R", path).code in (ExitCode.OK, ExitCode.DAMAGED)


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if progress were written into a log?
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    quiet, loud = io.StringIO(), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    for stream in (quiet, loud):
        monkeypatch.setattr(sys, "stderr", stream)
        meter = Meter()
        meter._next = 0.0
        meter.show(lambda: "working\x1b")
        meter.clear()
    assert quiet.getvalue() == ""
    assert loud.getvalue() == "\rworking\\x1b\x1b[K\r\x1b[K"


def test_an_image_whose_own_name_is_no_text(dfuser: Dfuser, disk: Path) -> None:
    # What if the name of the image itself cannot be printed?
    odd = Path(os.fsdecode(os.path.join(os.fsencode(disk.parent), b"\xff\n.img")))
    disk.rename(odd)
    for command in (
        ["info", odd], ["info", "--json", odd], ["ls", odd], ["ls", "-R", odd, odd],
        ["hammer2", "volhdr", odd], ["hammer2", "show", odd], ["hammer2", "pfs-list", odd, odd],
        ["hammer2", "pfs-list", "--json", odd], ["hammer2", "stat", odd],
    ):  # fmt: skip
        assert dfuser(*command).code == ExitCode.OK
    for command in (["fsck", odd], ["fsck", "--json", odd]):
        result = dfuser(*command)
        assert "Traceback" not in result.err
        assert "\\xff\\x0a.img" in result.out.replace("\\\\", "\\")


def test_every_kind_of_finding_is_shown(dfuser: Dfuser, disk: Path) -> None:
    # What if a volume without statistics and freemap, as the builder makes it, were called clean?
    found = dfuser("fsck", "--json", disk).json
    kinds = {row["kind"] for row in found["findings"]}
    assert "statistics" in kinds
    assert found["statistics"]["errors"] == sum(
        row["severity"] == "error" for row in found["findings"]
    )
