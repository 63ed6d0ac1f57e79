"""The command line on real mounts: start, stop, die, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfuser.client import Connection, choose
from dfuser.client.instances import birth
from tests.mount.mounted import dfuser_program, is_mounted

pytestmark = pytest.mark.mount
LONG = 60.0


class Shell:
    """Runs dfuser with a mount point and directories of its own."""

    def __init__(self, base: Path) -> None:
        self.mnt = base / "mnt"
        self.mnt.mkdir()
        self.run_dir = base / "run"
        self.state = base / "state"
        self._started: list[subprocess.Popen[str]] = []

    def call(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        words = [str(dfuser_program()), *map(str, args)]
        return subprocess.run(words, capture_output=True, text=True, timeout=LONG, check=False)

    def ok(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """One command that must succeed."""
        done = self.call(*args)
        assert done.returncode == 0, done.stderr
        return done

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        """A command that goes on running."""
        made = subprocess.Popen(
            [str(dfuser_program()), *map(str, args)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(made)
        return made

    def foreground(self, *args: str) -> subprocess.Popen[str]:
        """A server in the foreground whose mount is there and whose socket answers."""
        made = self.start("mount", "-f", *args, "tmpfs", self.mnt)
        wait_for(lambda: is_mounted(self.mnt) and any(self.run_dir.glob("*.sock")), made)
        return made

    def pid(self) -> int:
        """The process behind the mount."""
        return choose(str(self.mnt)).pid

    @contextlib.contextmanager
    def inside(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the host whose working directory is in the mount."""
        holder = subprocess.Popen(
            ["/bin/sh", "-c", f"cd '{self.mnt}' && echo in && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"in\n"
        try:
            yield holder
        finally:
            holder.stdin.close()
            holder.stdout.close()
            holder.wait(LONG)

    def nothing_left(self) -> None:
        """No mount, no socket, no instance file."""
        assert not is_mounted(self.mnt)
        assert list(self.mnt.iterdir()) == []
        assert not self.run_dir.exists() or list(self.run_dir.iterdir()) == []

    def clear(self) -> None:
        """Whatever a failed test has left."""
        for one in self._started:
            if one.poll() is None:
                one.kill()
            one.communicate()
        for path in self.run_dir.glob("*.json"):
            fields = json.loads(path.read_text())
            if birth(fields["pid"]) == fields["birth"]:
                os.kill(fields["pid"], signal.SIGKILL)
        while is_mounted(self.mnt):
            subprocess.run(["fusermount3", "-uz", str(self.mnt)], check=True)


def wait_for(condition: object, process: subprocess.Popen[str] | None = None) -> None:
    """Look again whenever the host's mounts change, and at least ten times a second."""
    descriptor = os.open("/proc/self/mounts", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        for _ in range(int(LONG * 10)):
            if condition():  # type: ignore[operator]
                return
            if process is not None and process.poll() is not None:
                raise AssertionError(f"it ended: {process.communicate()}")
            poll.poll(100)
        raise AssertionError("it did not happen")
    finally:
        os.close(descriptor)


def wait_pid(pid: int) -> None:
    """Wait until a process that is no child has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(LONG * 1000), f"{pid} goes on"
        finally:
            os.close(descriptor)


@pytest.fixture
def shell(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shell]:
    """A place of its own for each test; nothing of it is left running or mounted."""
    made = Shell(tmp_path_factory.mktemp("cli"))
    monkeypatch.setenv("DFUSER_RUN_DIR", str(made.run_dir))
    monkeypatch.setenv("XDG_STATE_HOME", str(made.state))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    try:
        yield made
    finally:
        made.clear()


def test_demo_says_what_to_try_and_leaves_with_ctrl_c(shell: Shell) -> None:
    # What if somebody just wants to see it?
    demo = shell.start("demo", shell.mnt / "new")
    assert demo.stdout is not None
    shown = [demo.stdout.readline() for _ in range(6)]
    assert all(":" in line for line in shown)
    assert sum(str(shell.mnt / "new") in line for line in shown) == 5
    assert sorted(os.listdir(shell.mnt / "new")) == ["dev", "kern", "proc", "sysctl", "tmp"]
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=LONG)
    assert (demo.returncode, out, err) == (0, "", "")
    assert not (shell.mnt / "new").exists()
    shell.nothing_left()


def test_what_demo_says_works(shell: Shell) -> None:
    # What if the lines were pasted?
    demo = shell.start("demo", shell.mnt)
    assert demo.stdout is not None
    shown = [demo.stdout.readline() for _ in range(6)]
    for line in shown[:4]:
        text = line.partition(":")[2].replace("dfuser ", f"{dfuser_program()} ")
        done = subprocess.run(
            ["/bin/sh", "-ec", text], capture_output=True, text=True, timeout=LONG, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout
    shell.ok("umount", shell.mnt)
    assert demo.wait(LONG) == 0
    shell.nothing_left()


def test_a_daemon_returns_when_its_mount_is_ready(shell: Shell) -> None:
    # What if the next command of a script uses the mount at once?
    done = shell.ok("mount", "-d", "-o", "size=1m", "tmpfs", shell.mnt)
    assert (done.stdout, done.stderr) == ("", "")
    (shell.mnt / "file").write_text("hello")
    assert (shell.mnt / "file").read_text() == "hello"
    assert os.statvfs(shell.mnt).f_blocks * os.statvfs(shell.mnt).f_frsize == 1 << 20
    assert "tmpfs" in shell.ok("mounts").stdout
    pid = shell.pid()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    shell.ok("umount", shell.mnt)
    assert birth(pid) is None
    shell.nothing_left()
    [log] = (shell.state / "dfuser").glob("*.log")
    assert "root on tmpfs" in log.read_text()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["-o", "size=zz"], 1, "size"),
        (["-o", "frobnicate"], 1, "frobnicate"),
        (["--log", "/proc/no/log"], 1, "cannot write the log"),
    ],
)
def test_a_daemon_that_fails_tells_its_parent(
    shell: Shell, options: list[str], code: int, text: str
) -> None:
    # What if the child fails after the fork: does the user see why, and the script the code?
    done = shell.call("mount", "-d", *options, "tmpfs", shell.mnt)
    assert done.returncode == code
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    shell.nothing_left()


def test_a_mounted_directory_is_refused(shell: Shell) -> None:
    # What if it is mounted twice?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    again = shell.call("mount", "-d", "tmpfs", shell.mnt)
    assert again.returncode == 12
    assert "mounted already" in again.stderr
    shell.ok("umount", shell.mnt)
    third = shell.call("umount", shell.mnt)
    assert third.returncode == 14
    assert "not mounted" in third.stderr


def test_umount_explains_a_busy_mount(shell: Shell) -> None:
    # What if a shell stands inside?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    with shell.inside() as holder:
        done = shell.call("umount", shell.mnt)
        assert done.returncode == 10
        assert f"in use by cat ({holder.pid})" in done.stderr
        assert done.stderr.count("\n") == 1
        assert is_mounted(shell.mnt)
        with (
            Connection(choose(str(shell.mnt)).socket) as kernel,
            pytest.raises(OSError, match=rf"cat \({holder.pid}\)") as caught,
        ):
            kernel.domsg("kernel", "stop")
        assert caught.value.errno == 16
    shell.ok("umount", shell.mnt)
    shell.nothing_left()


def test_a_lazy_umount_ends_it_although_somebody_is_inside(shell: Shell) -> None:
    # What if nobody knows who is inside, and it must go?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    pid = shell.pid()
    with shell.inside():
        shell.ok("umount", "--lazy", shell.mnt)
        assert birth(pid) is None
        shell.nothing_left()


def test_a_client_can_stop_the_kernel(shell: Shell) -> None:
    # What if a program asks for the end through the control socket?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    pid = shell.pid()
    with (
        Connection(choose(str(shell.mnt)).socket) as kernel,
        contextlib.suppress(ConnectionError),
    ):
        kernel.domsg("kernel", "stop")
    wait_pid(pid)
    shell.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_nothing(shell: Shell, number: signal.Signals) -> None:
    # What if the server is told to end while nobody is inside?
    server = shell.foreground("-q")
    (shell.mnt / "f").write_text("x")
    server.send_signal(number)
    out, err = server.communicate(timeout=LONG)
    assert (server.returncode, out, err) == (0, "", "")
    shell.nothing_left()


def test_fusermount_leaves_nothing(shell: Shell, transport: str) -> None:
    """What if the user unmounts with the host's own tool? With mounts inside it needs -z."""
    server = shell.foreground("-q")
    word = "-u" if transport == "pyfuse3" else "-uz"
    subprocess.run(["fusermount3", word, str(shell.mnt)], check=True)
    assert server.wait(LONG) == 0
    shell.nothing_left()


def test_ctrl_c_on_a_busy_mount_says_who_and_the_second_one_insists(shell: Shell) -> None:
    # What if one presses Ctrl-C while a shell stands inside, and then again?
    server = shell.foreground("-q")
    assert server.stderr is not None
    with shell.inside() as holder:
        server.send_signal(signal.SIGINT)
        line = server.stderr.readline()
        assert f"in use by cat ({holder.pid})" in line
        assert "Ctrl-C again" in line
        assert is_mounted(shell.mnt)
        assert "tmp" in os.listdir(shell.mnt)
        server.send_signal(signal.SIGINT)
        assert server.wait(LONG) == 128 + signal.SIGINT
        shell.nothing_left()


def test_sigterm_on_a_busy_mount_ends_all_the_same(shell: Shell) -> None:
    # What if systemd stops the service while somebody is inside?
    server = shell.foreground("-q")
    with shell.inside():
        server.send_signal(signal.SIGTERM)
        assert server.wait(LONG) == 128 + signal.SIGTERM
        shell.nothing_left()


@pytest.mark.parametrize("again", ["mount", "umount"])
def test_a_killed_server_is_cleared_away(shell: Shell, again: str) -> None:
    # What if the server was killed, and the same directory is mounted again or unmounted?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    pid = shell.pid()
    os.kill(pid, signal.SIGKILL)
    wait_pid(pid)
    assert is_mounted(shell.mnt)
    doctor = shell.call("doctor")
    assert doctor.returncode == 1
    assert f"-> dfuser umount {shell.mnt}" in doctor.stdout
    if again == "mount":
        done = shell.ok("mount", "-d", "tmpfs", shell.mnt)
        assert "cleared the mount of a killed dfuser" in done.stderr
        assert "tmp" in os.listdir(shell.mnt)
        assert len(list(shell.run_dir.glob("*.sock"))) == 1
    shell.ok("umount", shell.mnt)
    assert not is_mounted(shell.mnt)
    shell.nothing_left()


def test_sigusr1_shows_the_threads_and_sighup_reopens_the_log(shell: Shell) -> None:
    # What if one wants to see what a daemon does, and the log was rotated?
    shell.ok("mount", "-d", "--log", shell.state / "log", "tmpfs", shell.mnt)
    pid = shell.pid()
    with Connection(choose(str(shell.mnt)).socket) as kernel:
        seq = kernel.domsg("log", "tail")["seq"]
        waiting = kernel.sendmsg("log", "wait", since=seq)
        (shell.state / "log").rename(shell.state / "log.1")
        os.kill(pid, signal.SIGHUP)
        wait_for((shell.state / "log").exists)
        os.kill(pid, signal.SIGUSR1)
        assert "tid 1 " in kernel.waitmsg(waiting, LONG)["text"]
    shell.ok("umount", shell.mnt)
    assert "vnlru" in (shell.state / "log").read_text()


def test_run_gives_the_commands_code_and_a_report(shell: Shell) -> None:
    # What if a command runs in a throw-away world?
    report = shell.mnt / "report.json"
    script = 'test "$(cat dev/null)" = "" && echo hi > file && cat file && pwd; exit 3'
    done = shell.call("run", "--report", report, "--", "/bin/sh", "-c", script)
    assert done.returncode == 3
    hi, where = done.stdout.split()
    assert hi == "hi"
    assert not os.path.exists(where)
    assert "/bin/sh exited with 3" in done.stderr
    data = json.loads(report.read_text())
    assert data["by_operation"]["write"] >= 1
    assert data["requests"] == sum(data["by_operation"].values())
    assert shell.call("run", "-q", "no-such-command").returncode == 127
    assert shell.call("run", "-q", "sh", "-c", "kill -9 $$").returncode == 137


def test_the_manager_is_told_when_it_is_ready_and_when_it_stops(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if systemd starts it with Type=notify?
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LONG)
        sock.bind(f"\0dfuser-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@dfuser-test-{os.getpid()}")
        server = shell.start("mount", "tmpfs", shell.mnt)
        ready = sock.recv(4096).decode()
        assert "READY=1" in ready.splitlines()
        assert "tmp" in os.listdir(shell.mnt)
        server.send_signal(signal.SIGTERM)
        assert "STOPPING=1" in sock.recv(4096).decode().splitlines()
        assert server.wait(LONG) == 0


def test_as_a_helper_of_mount(shell: Shell, tmp_path: Path) -> None:
    # What if mount(8) runs it for a line of fstab?
    helper = tmp_path / "mount.fuse.dfuser"
    helper.symlink_to(dfuser_program())
    words = [helper, "tmpfs", shell.mnt, "-o", "rw,noauto,user,_netdev,size=1m,x-systemd.automount"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "tmp" in os.listdir(shell.mnt)
    again = subprocess.run(words, capture_output=True, text=True, timeout=LONG, check=False)
    assert again.returncode == 32
    assert "mounted already" in again.stderr
    shell.ok("umount", shell.mnt)
    shell.nothing_left()


def test_soak_reports_and_exits_by_its_verdict(shell: Shell) -> None:
    # What if a short soak is run on the only dfuser there is?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    done = shell.ok("soak", "--minutes", "0.01", "--seed", "7", "--load", "fsx", "--json")
    found = json.loads(done.stdout)["soak"]
    assert found["ok"]
    assert found["seed"] == 7
    assert found["results"][0]["operations"] > 0
    shell.ok("umount", shell.mnt)
    shell.nothing_left()


@pytest.mark.parametrize("how", ["ctrl-c", "umount"])
def test_following_the_log_ends_quietly(shell: Shell, how: str) -> None:
    # What if one watches the log, something is logged, and then one stops or it is unmounted?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    watch = shell.start("dmesg", "-w", "-n", "1")
    assert watch.stdout is not None
    assert watch.stdout.readline().startswith("mounted on ")
    (shell.mnt / "dev" / "console").write_text("hello console\n")
    assert "hello console" in watch.stdout.readline()
    if how == "ctrl-c":
        watch.send_signal(signal.SIGINT)
        out, err = watch.communicate(timeout=LONG)
        assert (watch.returncode, out, err.strip()) == (130, "", "")
    shell.ok("umount", shell.mnt)
    if how == "umount":
        _, err = watch.communicate(timeout=LONG)
        assert watch.returncode == 14
        assert "may have been unmounted" in err
        assert err.count("\n") == 1
    shell.nothing_left()


def test_following_the_trace_shows_what_happens(shell: Shell) -> None:
    # What if tracing is on and followed while files are looked up?
    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    shell.ok("ktr", "-e", "namecache")
    watch = shell.start("ktr", "--follow")
    assert watch.stdout is not None
    for number in range(3):
        assert not (shell.mnt / f"nothing{number}").exists()
        line = watch.stdout.readline()
        assert "namecache_resolve" in line
        assert f"nothing{number}" in line
    watch.send_signal(signal.SIGINT)
    assert watch.wait(LONG) == 130
    shell.ok("umount", shell.mnt)


PANIC = """
import sys
from dfuser.cli.logs import ServerLog
from dfuser.cli.main import report
from dfuser.cli.plan import make_plan
from dfuser.cli.server import Server
from dfuser.libkern.errno import panic
import trio

async def die():
    if sys.argv[2] == "panic":
        panic("a test panics")
    raise ZeroDivisionError("a thread dies")

async def body(server):
    server.kernel.lwkt.create(die, name="victim")
    await trio.sleep_forever()

try:
    Server(make_plan("tmpfs", sys.argv[1], []), ServerLog(100), body=body).serve()
except BaseException as error:
    sys.exit(report(error))
"""


@pytest.mark.parametrize(("how", "text"), [("panic", "a test panics"), ("thread", "a thread dies")])
def test_a_panic_takes_the_mount_away_and_names_the_dump(shell: Shell, how: str, text: str) -> None:
    # What if the kernel panics while a process of the host stands inside?
    done = subprocess.run(
        [sys.executable, "-c", PANIC, str(shell.mnt), how],
        capture_output=True, text=True, timeout=LONG, check=False,
    )  # fmt: skip
    assert done.returncode == 30, done.stderr
    assert text in done.stderr
    shell.nothing_left()
    [dump] = (shell.state / "dfuser").glob("panic-*.txt")
    assert str(dump) in done.stderr
    assert text in dump.read_text()
    assert "victim" in dump.read_text()


def test_corrupt_messages_do_not_hurt_the_mount(shell: Shell) -> None:
    # What if another program talks to the socket by mistake?
    import socket

    shell.ok("mount", "-d", "tmpfs", shell.mnt)
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"DFMP" + bytes(16), b"DFMP\x01\x02" + b"\xff" * 14):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LONG)
            sock.connect(choose(str(shell.mnt)).socket)
            sock.sendall(data)
            assert sock.recv(4096).startswith(b"DFMP")
    assert shell.ok("sysctl", "-n", "kern.ctl.corrupt").stdout.strip() == "3"
    assert "tmp" in os.listdir(shell.mnt)
    shell.ok("umount", shell.mnt)
