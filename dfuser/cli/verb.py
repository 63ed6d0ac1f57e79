"""How a verb is declared: a click command whose help text is its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click


class VerbCommand(click.Command):
    """A command that keeps the line breaks of indented paragraphs (examples, lists of options)."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        attributes["help"] = keep_lines(attributes.get("help") or "")
        super().__init__(name, **attributes)


def keep_lines(text: str) -> str:
    """Mark the paragraphs with indented lines as click wants it."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"\b\n{part}" if any(line.startswith("  ") for line in part.splitlines()) else part
        for part in paragraphs
    )


def verb(**attributes: Any) -> Callable[[Callable[..., Any]], VerbCommand]:
    """Make a verb out of a function; its docstring is the help text."""
    return click.command(cls=VerbCommand, **attributes)
