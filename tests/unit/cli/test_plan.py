"""From the words of a command line to a plan: options, sources, settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfuser.cli.exits import CliError, ExitCode
from dfuser.cli.plan import make_plan, parse_words


def test_words_are_sorted_by_who_they_are_for() -> None:
    # What if everything stands in one -o, as in fstab?
    words = parse_words(
        ["rw,allow_other,ncpu=4,size=1g,noauto,user,_netdev,x-systemd.automount", "noatime,ro"]
    )
    assert words.switches == {"allow_other", "ro"}
    assert words.kernel == {"ncpu": "4"}
    assert words.root == "size=1g,noatime"


def test_the_last_of_ro_and_rw_wins() -> None:
    # What if an option of fstab is overridden on the command line?
    assert "ro" not in parse_words(["ro", "rw"]).switches
    assert "ro" in parse_words(["rw", "ro"]).switches


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("ncpu", "-o ncpu needs a value"),
        ("memory=", "-o memory needs a value"),
        ("ncpu=many", "'many' is not a number"),
        ("ro=1", "-o ro takes no value"),
        ("memory=lots", "not a size"),
        ("memory=5k", "at least 4M"),
        ("ncpu=1000", "0 to 256"),
    ],
)
def test_a_bad_option_is_told(option: str, text: str) -> None:
    # What if an option lacks its value, has one too many, or a wrong one?
    with pytest.raises(CliError, match=text) as caught:
        make_plan("tmpfs", "/mnt", [option])
    assert caught.value.code == ExitCode.USAGE


def test_options_of_the_root_go_to_the_root(tmp_path: Path) -> None:
    # What if the size is given with -o, in a TOML file, or both?
    plan = make_plan("tmpfs", "/mnt", ["size=5m"])
    assert plan.config.world[0].option_map()["size"] == "5m"
    file = tmp_path / "world.toml"
    file.write_text('ncpu = 3\n[[world]]\nfstype = "tmpfs"\non = "/"\noptions = "mode=700"\n')
    plan = make_plan(str(file), "/mnt", ["size=5m", "ncpu=1"])
    options = plan.config.world[0].option_map()
    assert (options["mode"], options["size"]) == ("700", "5m")
    assert plan.config.ncpu == 1
    assert plan.fsname == str(file)


def test_an_ordinary_user_owns_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the user who mounts is not root: can he make a file in his own world?
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    options = make_plan("tmpfs", "/mnt", []).config.world[0].option_map()
    assert (options["uid"], options["gid"]) == ("1000", "100")
    options = make_plan("tmpfs", "/mnt", ["uid=5"]).config.world[0].option_map()
    assert options["uid"] == "5"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("disk.img", "there is no disk.img"),
        ("disk.img@ROOT", "HAMMER2 volumes are not there yet"),
        ("there.img", "HAMMER2 volumes are not there yet"),
        ("world.toml", "there is no file world.toml"),
    ],
)
def test_a_source_that_cannot_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    # What if SRC is an image, or is not there?
    monkeypatch.chdir(tmp_path)
    Path("there.img").touch()
    with pytest.raises(CliError, match=text) as caught:
        make_plan(source, "/mnt", [])
    assert caught.value.code == ExitCode.SOURCE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["ncpu = ", "frob = 1", "ncpu = [1]", 'world = "x"', "seed = 'x'"])
def test_a_bad_config_file_is_told(tmp_path: Path, text: str) -> None:
    # What if the TOML file is no TOML, or says what cannot be?
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(CliError) as caught:
        make_plan(str(file), "/mnt", [])
    assert caught.value.code == ExitCode.USAGE
    assert "bad.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mount_point_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the mount point is relative and leads through a link?
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert make_plan("tmpfs", "link/m", []).mountpoint == str(tmp_path / "real" / "m")
