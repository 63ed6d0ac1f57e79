"""The group of verbs: help, errors in one line, exit codes, quick start."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from dfuser.cli import main as cli
from dfuser.cli.exits import CliError, ExitCode
from dfuser.cli.main import VERBS, group, helper_args
from dfuser.client import ConnectionLost, KernelError

from .conftest import Dfuser


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself_with_an_example(dfuser: Dfuser, name: str) -> None:
    # What if the help of a verb has no example, or the overview says something else?
    result = dfuser(name, "--help")
    assert result.code == ExitCode.OK
    assert f"dfuser {name}" in result.out.split("Example", 1)[1] or name == "config"
    command = group.get_command(click.Context(group), name)
    assert command is not None
    first = (command.help or "").partition("\n")[0].rstrip(".")
    assert VERBS[name].help.rstrip(".").startswith(first[:20])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["frobnicate"], "there is no verb 'frobnicate'"),
        (["mout", "a", "b"], "did you mean 'mount'?"),
        (["--frob"], "no such option '--frob' (see 'dfuser --help')"),
        (["ps", "--frob"], "(see 'dfuser ps --help')"),
        (["mount"], "missing argument 'SRC'"),
        (["mount", "tmpfs"], "missing argument 'DIR'"),
        (["vnodes", "-n", "many"], "'many' is not a valid integer"),
        (["vnodes", "-n", "0"], "0 is not in the range"),
        (["completion", "tcsh"], "'tcsh'"),
        (["mount", "-f", "-d", "tmpfs", "/x"], "-f and -d contradict each other"),
        (["soak", "--load", "frob"], "there is no load 'frob'"),
    ],
)
def test_wrong_words_are_one_line_and_exit_1(dfuser: Dfuser, words: list[str], text: str) -> None:
    # What if the command line is wrong?
    result = dfuser(*words)
    assert result.code == ExitCode.USAGE
    assert text in result.line
    assert result.out == ""


def test_no_words_show_the_overview(dfuser: Dfuser) -> None:
    # What if somebody just types the name?
    result = dfuser()
    assert result.code == ExitCode.USAGE
    assert all(f"  {name} " in result.out for name in VERBS)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CliError(ExitCode.SOURCE, "no image"), ExitCode.SOURCE, "no image"),
        (KernelError(22, "bad value"), ExitCode.USAGE, "bad value"),
        (KernelError(1, "not you"), ExitCode.PERMISSION, "not you"),
        (KernelError(2, "no such thing"), ExitCode.KERNEL, "no such thing"),
        (ConnectionLost("gone"), ExitCode.NOT_RUNNING, "gone: it may have been unmounted"),
        (TimeoutError(), ExitCode.NOT_RUNNING, "does not answer"),
        (ConnectionRefusedError(), ExitCode.NOT_RUNNING, "was killed"),
        (PermissionError(13, "Permission denied", "/x"), ExitCode.PERMISSION, "/x"),
        (ZeroDivisionError("oops"), ExitCode.INTERNAL, "a bug in dfuser: ZeroDivisionError: oops"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    # What if something goes wrong: is it one line without a traceback and the right code?
    assert cli.report(error) == code
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == bool(text)


def test_a_traceback_is_shown_when_asked_for(
    dfuser: Dfuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if the user wants to report a bug?
    assert "Traceback" not in dfuser("umount", "/proc").err
    assert "Traceback" in dfuser("--traceback", "umount", "/proc").err
    assert "Traceback" not in dfuser("umount", "--", "--traceback").err
    monkeypatch.setenv("DFUSER_TRACEBACK", "1")
    assert "Traceback" in dfuser("umount", "/proc").err


def test_as_a_helper_of_mount() -> None:
    # What if mount(8) calls with its own switches?
    assert helper_args(["SRC", "DIR", "-o", "rw,allow_other"]) == [
        "mount", "-d", "SRC", "DIR", "-o", "rw,allow_other",
    ]  # fmt: skip
    assert helper_args(["-n", "-v", "-t", "fuse.dfuser", "SRC", "DIR", "-r"]) == [
        "mount", "-d", "SRC", "DIR", "-o", "ro",
    ]  # fmt: skip


def test_as_a_helper_failures_exit_with_32(monkeypatch: pytest.MonkeyPatch) -> None:
    # What if mount(8) wants to know whether the mount failed?
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/mount.fuse.dfuser", "none.img", "/", "-o", "rw"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.HELPER


def test_help_and_client_verbs_import_nothing_heavy() -> None:
    # What if 'dfuser --help' loaded the whole kernel? It would take seconds.
    code = (
        "import sys; from dfuser.cli.main import run; run(['--help']); run(['ps']); "
        "run(['sysctl', '-a']); run(['ktr']); "
        "bad = {'trio', 'pyfuse3', 'attr', 'sortedcontainers', 'psutil'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_completion_scripts_complete(dfuser: Dfuser, monkeypatch: pytest.MonkeyPatch) -> None:
    # What if a shell asks for the verbs that begin with "um"?
    for shell in ("bash", "zsh", "fish"):
        assert "_DFUSER_COMPLETE" in dfuser("completion", shell).out
    monkeypatch.setenv("_DFUSER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "dfuser um")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert dfuser().out == "plain,umount\n"
