"""Tables, JSON and what is kept from the terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.cli import output
from dfuser.cli.output import Column, clean, size, table

COLUMNS = (Column("name", "NAME"), Column("count", "COUNT", True))


def test_a_table_is_aligned() -> None:
    # What if the cells are longer than the heading, or shorter?
    rows = [{"name": "a", "count": 1}, {"name": "longer", "count": 123456}]
    assert table(rows, COLUMNS) == ["NAME     COUNT", "a            1", "longer  123456"]
    assert table([], COLUMNS) == ["NAME  COUNT"]


@given(st.text())
def test_clean_text_is_printable(text: str) -> None:
    # What if a name has any character at all in it?
    assert clean(text).isprintable()
    clean(text).encode()


def test_clean_shows_the_bytes_of_a_name_that_is_not_utf8() -> None:
    # What if a name is not UTF-8?
    assert clean(b"a\xffb".decode("utf-8", "surrogateescape")) == "a\\xffb"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1536, "1.5K"), (20 << 20, "20M"), (1 << 40, "1T"),
     (5000 << 40, "5000T")],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    # What if a number is small, exact, or enormous?
    assert size(number) == text


def test_no_colour_outside_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What if the output goes to a file, or NO_COLOR is set?
    output.print_table([{"name": "a", "count": 1}], COLUMNS)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in output.paint("ok")
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("ok") == "ok"


def test_json_is_one_object_with_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    # What if a program reads it?
    output.print_json("rows", [{"a": 1}], more=False)
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "rows": [{"a": 1}], "more": False}
