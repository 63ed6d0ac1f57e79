"""The doctor: each ailment is found, and the fix is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfuser.cli import doctor
from dfuser.cli.exits import ExitCode
from dfuser.client.instances import register, unregister
from dfuser.fuse import mountpoint as host

from .conftest import Dfuser


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dfuser: Dfuser) -> None:
    # What if the host has no FUSE at all?
    monkeypatch.setattr(doctor, "DEVICE", tmp_path / "fuse")
    finding = doctor.device()
    assert finding.verdict == "fail"
    assert "modprobe fuse" in finding.fix
    result = dfuser("doctor")
    assert result.code == ExitCode.USAGE
    assert result.out.startswith("fail  device")
    assert "-> run 'modprobe fuse'" in result.out


def test_no_fusermount(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the package fuse3 is missing, or its tool is old?
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert doctor.fusermount().fix == "apt-get install fuse3"
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/true")
    old = SimpleNamespace(stdout="fusermount3 version: 3.1.0\n")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: old)
    assert doctor.fusermount().verdict == "warn"


def test_other_users_need_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if an ordinary user wants to let others in?
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(host, "_FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.other_users().verdict == "warn"
    conf.write_text("# user_allow_other\n")
    assert doctor.other_users().verdict == "warn"
    conf.write_text("user_allow_other\n")
    assert doctor.other_users().verdict == "ok"


def test_few_files_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the limits are tight?
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _which: (256, 4096))
    assert doctor.files().fix == "ulimit -n 4096"
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr(doctor, "MEMINFO", meminfo)
    assert doctor.memory().verdict == "warn"


def test_no_fusectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if the limits of connections cannot be raised?
    monkeypatch.setattr(doctor, "CONNECTIONS", tmp_path / "none")
    assert "fusectl" in doctor.connections().fix


def test_a_stale_mount_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if a dfuser was killed?
    info = host.MountInfo(1, "0:9", "/dead/mnt", "fuse.dfuser", "tmpfs")
    monkeypatch.setattr(host, "mounts", lambda: [info])
    monkeypatch.setattr(doctor, "is_stale", lambda path: path == "/dead/mnt")
    [finding] = doctor.stale()
    assert (finding.verdict, finding.fix) == ("fail", "dfuser umount /dead/mnt")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if a package is not installed?
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-here",))
    finding = next(doctor.packages())
    assert (finding.verdict, finding.fix) == ("fail", "pip install no-such-package-here")


def test_a_socket_without_a_server_is_found() -> None:
    # What if an instance lives but does not answer?
    instance = register("/mnt/x", 1.0)
    try:
        [finding] = doctor.sockets()
    finally:
        unregister(instance)
    assert finding.verdict == "fail"
    assert finding.fix == "dfuser umount --lazy /mnt/x"


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if /proc is not what we think?
    monkeypatch.setattr(doctor, "MEMINFO", Path("/nonexistent/meminfo"))
    assert any(found.text.startswith("cannot be checked") for found in doctor.examine())


def test_json(dfuser: Dfuser) -> None:
    # What if a program asks?
    rows = dfuser("doctor", "--json").json["checks"]
    assert {row["check"] for row in rows} >= {"device", "fusermount3", "python", "memory"}
    assert all(row["verdict"] in ("ok", "warn", "fail") for row in rows)
    assert all(row["fix"] for row in rows if row["verdict"] != "ok")
