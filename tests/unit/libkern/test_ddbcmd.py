"""Debugger commands: declared by their owners, found by shortened names."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dfuser.libkern.ddbcmd import LINES_MAX, DdbCommands, ddb_command, ddb_show
from dfuser.libkern.errno import EINVAL, ENOENT, KError


class Threads:
    @ddb_show("threads")
    def show_threads(self, *args: str) -> Iterable[str]:
        """One line a thread."""
        return [f"threads {' '.join(args)}"]

    @ddb_show("tokens")
    def show_tokens(self, *args: str) -> Iterable[str]:
        """One line a token."""
        raise KError(EINVAL, f"what is {args}?")

    @ddb_command("ps")
    def ps(self, *_args: str) -> Iterable[str]:
        """Processes."""
        return (str(n) for n in range(LINES_MAX + 5))


class More:
    @ddb_show("thread")
    def show_thread(self, *_args: str) -> Iterable[str]:
        return ["one"]


@pytest.fixture
def commands() -> DdbCommands:
    table = DdbCommands()
    table.register(Threads())
    return table


def test_find_and_run(commands: DdbCommands) -> None:
    # What if a command could not be shortened, or lost its arguments?
    assert commands.run("show threads 1 2") == ["threads 1 2"]
    assert commands.run("sh th x") == ["threads x"]
    assert commands.run("") == []
    assert [e.name for e in commands.entries()] == ["ps", "show threads", "show tokens"]
    assert commands.entries()[1].help == "One line a thread."


def test_the_whole_name_wins(commands: DdbCommands) -> None:
    # What if "show thread" were ambiguous because "show threads" exists?
    commands.register(More())
    assert commands.run("show thread") == ["one"]
    assert commands.run("show threads") == ["threads "]


@pytest.mark.parametrize(
    ("line", "error"),
    [("show t", EINVAL), ("show nope", ENOENT), ("nope", ENOENT), ("show tokens 5", EINVAL),
     ("show", ENOENT)],
)  # fmt: skip
def test_errors(commands: DdbCommands, line: str, error: int) -> None:
    # What if a typing mistake in the debugger became a second panic?
    with pytest.raises(KError) as caught:
        commands.run(line)
    assert caught.value.errno == error
    assert commands.statistics().errors == 1


def test_output_is_bounded(commands: DdbCommands) -> None:
    # What if a command printed for ever?
    lines = commands.run("ps")
    assert len(lines) == LINES_MAX + 1
    assert "cut" in lines[-1]


def test_register_and_unregister(commands: DdbCommands) -> None:
    # What if two objects owned one name, or a dead object stayed in the table?
    with pytest.raises(ValueError, match="taken"):
        commands.register(Threads())
    more = More()
    commands.register(more)
    assert commands.statistics().commands == 4
    commands.unregister(more)
    assert commands.statistics().commands == 3
    with pytest.raises(KError):
        commands.unregister(more)
