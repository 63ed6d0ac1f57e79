"""The verbs that talk to a running kernel: what they print and how they exit."""

from __future__ import annotations

import pytest

from dfuser.cli.exits import ExitCode

from .conftest import MOUNTPOINT, Dfuser, Running


def test_ps(dfuser: Dfuser, running: Running) -> None:
    # What if one looks at the threads?
    result = dfuser("ps")
    assert result.code == ExitCode.OK
    assert result.err == ""
    head, *rows = result.out.splitlines()
    assert head.split() == ["PID", "PPID", "TID", "CPU", "PRI", "STAT", "WMESG", "COMMAND"]
    assert any(row.endswith("vnlru") for row in rows)
    long = dfuser("ps", "-l", "-H", "-m", MOUNTPOINT).out.splitlines()[0].split()
    assert {"UID", "SWITCHES", "HOSTPID", "STARTED"} <= set(long)
    row = dfuser("ps", "--json").json["processes"][0]
    assert {"pid", "tid", "wmesg", "comm", "host_pid"} <= set(row)


def test_sysctl(dfuser: Dfuser, running: Running) -> None:
    # What if variables are shown and changed, as sysctl(8) does?
    assert dfuser("sysctl", "kern.ostype").out == "kern.ostype: DragonFly\n"
    assert dfuser("sysctl", "-n", "kern.ostype").out == "DragonFly\n"
    assert dfuser("sysctl", "-N", "kern.ostype").out == "kern.ostype\n"
    assert dfuser("sysctl", "-d", "kern.ostype").out.startswith("kern.ostype: Operating system")
    old = dfuser("sysctl", "-n", "kern.maxvnodes").out.strip()
    changed = dfuser("sysctl", "kern.maxvnodes=6000")
    assert changed.out == f"kern.maxvnodes: {old} -> 6000\n"
    everything = dfuser("sysctl", "-a").out
    assert "vfs.cache.numneg: " in everything
    assert len(everything.splitlines()) > 50
    [row] = dfuser("sysctl", "--json", "kern.maxvnodes").json["variables"]
    assert (row["value"], row["type"]) == ("6000", "int")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["kern.maxvnodes=lots"], ExitCode.USAGE, "kern.maxvnodes=lots"),
        (["kern.ostype=BSD"], ExitCode.PERMISSION, "kern.ostype may not be changed"),
        (["kern.frob"], ExitCode.USAGE, "kern.frob"),
        (["kern.frob=1"], ExitCode.USAGE, "kern.frob"),
        ([], ExitCode.USAGE, "-a for all"),
    ],
)
def test_a_bad_sysctl_is_one_line(
    dfuser: Dfuser, running: Running, words: list[str], code: int, text: str
) -> None:
    # What if the name or the value is wrong?
    result = dfuser("sysctl", *words)
    assert result.code == code
    assert text in result.line
    assert result.out == ""


def test_one_bad_sysctl_does_not_keep_the_others_from_being_shown(
    dfuser: Dfuser, running: Running
) -> None:
    # What if one name of several is wrong?
    result = dfuser("sysctl", "kern.frob", "kern.ostype")
    assert result.out == "kern.ostype: DragonFly\n"
    assert result.code == ExitCode.USAGE


def test_mounts_and_df(dfuser: Dfuser, running: Running) -> None:
    # What if one asks what is mounted inside and how full it is?
    rows = dfuser("mounts").out.splitlines()
    assert rows[0].split()[:4] == ["ID", "SOURCE", "ON", "TYPE"]
    assert [row.split()[2] for row in rows[1:3]] == ["/", "/tmp"]
    assert dfuser("mounts", "--json").json["mounts"][0]["type"] == "tmpfs"
    df = dfuser("df", "-i").out.splitlines()
    assert df[0].split()[:6] == ["SOURCE", "TYPE", "SIZE", "USED", "AVAIL", "CAPACITY"]
    assert dfuser("df", "--json").json["filesystems"][0]["bsize"] > 0


def test_nlookup(dfuser: Dfuser, running: Running) -> None:
    # What if one watches a walk that ends nowhere?
    good = dfuser("nlookup", "/tmp")
    assert good.code == ExitCode.OK
    assert "mount point crossed" in good.out
    bad = dfuser("nlookup", "/tmp/none/such")
    assert bad.code == ExitCode.KERNEL
    assert bad.line == "/tmp/none/such: No such file or directory (ENOENT)"
    assert "negative" in bad.out
    assert dfuser("nlookup", "tmp").code == ExitCode.USAGE
    for length in (1024, 1025):
        long = dfuser("nlookup", "/" * length)
        assert long.code == ExitCode.KERNEL
        assert long.line.endswith("File name too long (ENAMETOOLONG)")
    dots = dfuser("nlookup", "--for", "delete", "/tmp/..")
    assert dots.code == ExitCode.KERNEL
    assert "ENOTEMPTY" in dots.out
    assert dots.line.endswith("(ENOTEMPTY)")
    assert dfuser("nlookup", "--for", "create", "/tmp/free").code == ExitCode.OK
    assert dfuser("nlookup", "--for", "frob", "/tmp").code == ExitCode.USAGE


def test_names_cannot_play_with_the_terminal(dfuser: Dfuser, running: Running) -> None:
    # What if a name has an escape sequence in it?
    result = dfuser("nlookup", "/\x1b[31mred\n")
    assert "\x1b" not in result.out + result.err
    assert "\\x1b[31mred\\x0a" in result.out


def test_vnodes_and_ports(dfuser: Dfuser, running: Running) -> None:
    # What if one looks at vnodes and ports?
    result = dfuser("vnodes", "-n", "2")
    assert len(result.out.splitlines()) == 3
    assert "there are more" in result.line
    assert len(dfuser("vnodes", "--json").json["vnodes"]) > 2
    assert "ctl:sysctl" in dfuser("ports").out
    assert "sysctl.set" in dfuser("ports", "--commands").out
    assert "wait" in dfuser("ports", "--commands", "--json").json["ports"]["log"]


def test_dmesg(dfuser: Dfuser, running: Running) -> None:
    # What if the log has levels and control characters?
    assert running.kernel is not None
    running.call(running.kernel.log, "evil \x1b[2J line")
    result = dfuser("dmesg", "-n", "1")
    assert result.out == "evil \\x1b[2J line\n"
    assert dfuser("dmesg", "--json").json["log"]


def test_ktr(dfuser: Dfuser, running: Running) -> None:
    # What if tracing is switched on, used, and switched off?
    assert "namecache" in dfuser("ktr").out
    assert dfuser("ktr", "-e", "namecache").code == ExitCode.OK
    dfuser("nlookup", "/fresh/name")
    assert "namecache_resolve" in dfuser("ktr", "-n", "20").out
    assert dfuser("ktr", "-n", "5", "--json").json["entries"]
    assert dfuser("ktr", "-d", "namecache").code == ExitCode.OK
    states = {row["name"]: row["mask"] for row in dfuser("ktr", "--json").json["masters"]}
    assert states["namecache"] == 0
    wrong = dfuser("ktr", "-e", "frob")
    assert wrong.code == ExitCode.USAGE
    assert "there is no trace master 'frob'" in wrong.line


def test_ddb_sync_and_config(dfuser: Dfuser, running: Running) -> None:
    # What if the small verbs are used?
    assert "show threads" in dfuser("ddb", "-c", "help").out
    assert dfuser("ddb", "-c", "show threads").code == ExitCode.OK
    assert dfuser("ddb", "-c", "frob").code == ExitCode.KERNEL
    assert dfuser("sync").code == ExitCode.OK
    assert "16777216" in dfuser("config", "--running").out


def test_json_documents_have_a_schema(dfuser: Dfuser, running: Running) -> None:
    # What if a program reads the output: is every document of the same kind?
    for words in (["ps"], ["mounts"], ["df"], ["vnodes"], ["ports"], ["ktr"], ["dmesg"],
                  ["sysctl", "-a"], ["nlookup", "/"], ["config"], ["doctor"]):  # fmt: skip
        assert dfuser(*words, "--json").json["schema"] == 1, words


@pytest.mark.parametrize(
    "words",
    [["ps"], ["sysctl", "-a"], ["mounts"], ["df"], ["vnodes"], ["ports"], ["dmesg"], ["ktr"],
     ["nlookup", "/"], ["sync"], ["ddb", "-c", "help"], ["config", "--running"], ["soak"]],
)  # fmt: skip
def test_without_a_kernel_each_verb_says_so(dfuser: Dfuser, words: list[str]) -> None:
    # What if nothing is running?
    result = dfuser(*words)
    assert result.code == ExitCode.NOT_RUNNING
    assert result.line == "no dfuser is running: start one with 'dfuser demo'"


def test_a_mount_point_of_nobody(dfuser: Dfuser, running: Running) -> None:
    # What if -m names a directory where no dfuser is?
    result = dfuser("-m", "/somewhere/else", "ps")
    assert result.code == ExitCode.NOT_RUNNING
    assert result.line.startswith("no dfuser is mounted on /somewhere/else; running: /nowhere/mnt")
