"""Run cases, each in its own process, in its own directory, within its own time.

The runner forks once for a case. The child leads a session of its own, so that when time is up
(or when the case left children behind) everything it started is killed with it; the verdict comes
back through a pipe as one line of JSON. A child that dies without a verdict failed, and the signal
that killed it is the reason. A case that hangs costs its time limit and nothing else: the runner
goes on with the next one, which is what makes the table useful on a file system that is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.posix import linux
from tests.posix.case import Case, CaseFailed, NotApplicable

PASS, FAIL, NA = "pass", "fail", "n/a"
GONE = "the file system is gone"
LAST_WORDS = 5.0


class Outcome(NamedTuple):
    """What became of one case."""

    title: str
    verdict: str
    reason: str
    seconds: float

    @property
    def subject(self) -> str:
        """The subject the case belongs to."""
        return self.title.partition(".")[0]


def run_case(case: Case, directory: Path) -> Outcome:
    """Run one case in a new process below `directory` and say what became of it."""
    if case.root and os.geteuid() != 0:
        return Outcome(case.title, NA, "only root can ask this", 0.0)
    started = time.monotonic()
    verdict, reason = _judge(case, directory)
    return Outcome(case.title, verdict, reason, round(time.monotonic() - started, 4))


def run_cases(cases: Iterable[Case], directory: Path) -> Iterator[Outcome]:
    """Run the cases one after another in a working directory of their own below `directory`.

    When the file system stops answering, the case that ended it is named and the rest fail unrun.
    """
    work = Path(tempfile.mkdtemp(prefix="posix-", dir=directory))
    work.chmod(0o755)
    killer = ""
    try:
        for case in cases:
            if killer:
                yield Outcome(case.title, FAIL, f"{GONE} since {killer}", 0.0)
                continue
            outcome = run_case(case, work)
            if outcome.verdict == FAIL and not answers(work):
                killer = case.title
            yield outcome
    finally:
        remove_tree(work)


def answers(directory: Path) -> bool:
    """Whether the file system still answers at all; asked in a child, for it may hang."""
    child = os.fork()
    if child == 0:
        try:
            os.statvfs(directory)
            os.listdir(directory)
        except OSError:
            os._exit(1)
        os._exit(0)
    status = _reap(child)
    if status is None:
        os.kill(child, signal.SIGKILL)
    return status == 0


def remove_tree(path: Path) -> None:
    """Remove a tree however deep it is and whatever modes its directories have."""
    with contextlib.suppress(OSError):
        _empty(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        path.rmdir()


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the report as lines: a row a subject, the total, and every failure's reason."""
    counts: dict[str, Counter[str]] = {}
    failures = []
    for outcome in outcomes:
        for key in (outcome.subject, "total"):
            counts.setdefault(key, Counter())[outcome.verdict] += 1
        if outcome.verdict == FAIL and not outcome.reason.startswith(GONE):
            failures.append(f"fail {outcome.title}: {outcome.reason}")
    unrun = [outcome.reason for outcome in outcomes if outcome.reason.startswith(GONE)]
    if unrun:
        failures.append(f"{unrun[0]}: {len(unrun)} cases not run")
    total = counts.pop("total", Counter())
    lines = [f"{'subject':<14}{'pass':>6}{'fail':>6}{'n/a':>6}"]
    for subject, count in [*counts.items(), ("total", total)]:
        lines.append(f"{subject:<14}{count[PASS]:>6}{count[FAIL]:>6}{count[NA]:>6}")
    return [*lines, *failures]


def _judge(case: Case, directory: Path) -> tuple[str, str]:
    try:
        place = Path(tempfile.mkdtemp(prefix="case-", dir=directory))
        place.chmod(0o755)
    except OSError as error:
        return FAIL, f"no directory for the case: {error}"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(case, place, writer)
    os.close(writer)
    try:
        said = _listen(reader, case.limit)
        return _verdict(said, child, case.limit)
    finally:
        os.close(reader)
        shutil.rmtree(place, ignore_errors=True)
        if os.path.lexists(place):
            remove_tree(place)


def _child(case: Case, place: Path, writer: int) -> NoReturn:
    os.setsid()
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        case.run(place)
        verdict, reason = PASS, ""
    except NotApplicable as outcome:
        verdict, reason = NA, str(outcome)
    except CaseFailed as outcome:
        verdict, reason = FAIL, str(outcome)
    except BaseException as outcome:
        frame = traceback.extract_tb(outcome.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        verdict, reason = FAIL, f"{type(outcome).__name__}: {outcome} ({at})"
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps([verdict, reason[:2000]]).encode())
    os._exit(0)


def _listen(reader: int, limit: float) -> bytes:
    """Read the child's verdict; empty when it died or had no time left."""
    ready, _, _ = select.select([reader], [], [], limit)
    return os.read(reader, 65536) if ready else b"late"


def _verdict(said: bytes, child: int, limit: float) -> tuple[str, str]:
    with contextlib.suppress(ProcessLookupError):
        if said == b"late":
            os.killpg(child, signal.SIGKILL)
    status = _reap(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        return FAIL, f"over its limit of {limit:g} s, and not even SIGKILL ends it"
    if said == b"late":
        return FAIL, f"over its limit of {limit:g} s"
    if said:
        verdict, reason = json.loads(said)
        return str(verdict), str(reason)
    return FAIL, f"the process died: {_death(status)}"


def _reap(child: int) -> int | None:
    """Wait a few seconds for a child that has finished or was killed."""
    descriptor = os.pidfd_open(child)
    try:
        ready, _, _ = select.select([descriptor], [], [], LAST_WORDS)
    finally:
        os.close(descriptor)
    return os.waitpid(child, 0)[1] if ready else None


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _empty(directory: int) -> None:
    """Remove all entries below a directory without ever naming a path; closes `directory`.

    A tree can be deeper than the longest path, so the walk goes down with descriptors. The list of
    parents is the open descriptors' own chain, hence an explicit stack and no recursion.
    """
    stack: list[tuple[int, str]] = [(directory, "")]
    while stack:
        top, name = stack[-1]
        down = _empty_one(top)
        if down is not None:
            stack.append(
                (os.open(down, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top), down)
            )
            continue
        stack.pop()
        os.close(top)
        if stack:
            os.rmdir(name, dir_fd=stack[-1][0])


def _empty_one(directory: int) -> str | None:
    """Unlink what is no directory; return the name of one subdirectory, if there is one."""
    os.lseek(directory, 0, os.SEEK_SET)
    for name in os.listdir(directory):
        kind = stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
        if kind in (stat.S_IFDIR, stat.S_IFREG):
            _take_flags_away(directory, name)
        if kind == stat.S_IFDIR:
            os.chmod(name, 0o700, dir_fd=directory)
            return name
        os.unlink(name, dir_fd=directory)
    return None


def _take_flags_away(directory: int, name: str) -> None:
    """A case that was killed may have left a file immutable, and so not to be removed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)
        try:
            if linux.file_flags(descriptor) & (linux.FS_IMMUTABLE_FL | linux.FS_APPEND_FL):
                linux.set_file_flags(descriptor, 0)
        finally:
            os.close(descriptor)
