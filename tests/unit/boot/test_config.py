"""Where settings come from, which source wins, and what a bad one is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfuser.boot.config import Config, ConfigError, MountSpec, load, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64M", 64 << 20), ("2g", 2 << 30), (" 1 KiB ", 1024), ("1t", 1 << 40)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    # What if somebody writes a unit?
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "12q", "-1", "1.5g", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    # What if it is no size at all?
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    # What if all three sources name the same setting?
    file = tmp_path / "dfuser.toml"
    file.write_text('ncpu = 1\nmemory = "16M"\nhostname = "file"\n')
    config = load({"ncpu": 3, "hostname": None}, {"DFUSER_NCPU": "2", "DFUSER_MEMORY": "32M"}, file)
    assert (config.ncpu, config.memory, config.hostname) == (3, 32 << 20, "file")
    origins = {name: origin for name, _, origin in config.explain()}
    assert origins["ncpu"] == "flag"
    assert origins["memory"] == "environment"
    assert origins["hostname"] == f"file {file}"
    assert origins["seed"] == "default"


def test_a_world_of_ones_own(tmp_path: Path) -> None:
    # What if a file says what to mount?
    file = tmp_path / "w.toml"
    file.write_text(
        '[[world]]\nfstype = "tmpfs"\non = "/"\noptions = "size=1m,mode=700"\n'
        '[[world]]\nfstype = "procfs"\non = "/proc"\n[sysctl]\n"kern.maxvnodes" = 3000\n'
    )
    config = load(path=file)
    assert [spec.on for spec in config.world] == ["/", "/proc"]
    assert config.world[0].option_map() == {"size": "1m", "mode": "700"}
    assert config.sysctl == {"kern.maxvnodes": "3000"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ncpu = 999", "ncpu = 999 (file .*) is not 0 to 256"),
        ('memory = "1k"', "memory = 1024 .* is not at least 4M"),
        ('memory = "lots"', "memory: 'lots' is not a size"),
        ('ncpu = "many"', "ncpu: not a whole number: 'many'"),
        ("ncpu = 1.5", "ncpu: not a whole number: 1.5"),
        ("seed = true", "seed: not a whole number: True"),
        ("maxvnodes = 1999", "maxvnodes = 1999 .* is not 0 or 2000 to 4000000"),
        ("memory = 1.5", "memory: 1.5 is not a size"),
        ("world = [1]", r"world is a list of \[\[world\]\] tables"),
        (
            '[[world]]\non = "/"\ntype = "tmpfs"',
            "a mount has fstype, on, source, options, not 'type'",
        ),
        ('[[world]]\non = "/"', "a mount needs fstype and on"),
        ("colour = 1", "there is no setting 'colour'"),
        ("ncpu = [", "is not TOML"),
        ("world = 1", r"world is a list of \[\[world\]\] tables"),
        ('[[world]]\nfstype = "tmpfs"\non = "/tmp"', "exactly one is on /"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    # What if the file is wrong?
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint.replace("(file .*)", r"\(file .*\)")):
        load(path=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    # What if there is no such file?
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        load(path=tmp_path / "nowhere.toml")


def test_another_root_keeps_the_rest_of_the_world() -> None:
    # What if only the root shall be something else?
    config = Config().with_root("tmpfs", "tmpfs", "size=8m")
    assert config.world[0] == MountSpec("tmpfs", "/", "tmpfs", "size=8m,maxsymlink=4095")
    assert [spec.on for spec in config.world[1:]] == [spec.on for spec in Config().world[1:]]
