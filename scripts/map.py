"""Draw docs/map.md: every file of the kernel, what it is for, and what it answers to in DragonFly.

Read from the head docstrings, so the map cannot say anything the code does not. Run it after
adding or renaming a file: ``.venv/bin/python scripts/map.py``; with ``--check`` it only says
whether the map is true.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "map.md"
#: Top floor first, as in the import contract.
FLOORS = (
    "cli", "soak", "fuse", "ctl", "ddb", "obs", "boot", "usr", "kern", "net", "vfs", "dev", "vm",
    "lwkt", "hw", "libkern", "client",
)  # fmt: skip
HEAD = """# The map

Every file of the kernel, top floor first; a package imports lower floors only. Written by
`scripts/map.py` from the first lines of the files.
"""


def summary(path: Path) -> tuple[str, str]:
    """First sentence of a file's docstring, and its counterpart in DragonFly."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(doc.partition("\n\n")[0].split())
    match = re.search(r"^Counterpart: (.*?)(?=^\w[\w/ ]*:|\n\n|\Z)", doc, re.M | re.S)
    counterpart = " ".join(match[1].split()).rstrip(".") if match else ""
    return first, "" if counterpart.lower().startswith("none") else counterpart


def rows(package: Path) -> list[str]:
    """The table of one package, subpackages after their parent's files."""
    out = []
    files = sorted(package.rglob("*.py"), key=lambda p: (len(p.parts), str(p)))
    for path in files:
        if path.name == "__init__.py" and path.parent == package:
            continue
        first, counterpart = summary(path)
        if not first:
            continue
        name = path.relative_to(package).as_posix().removesuffix("/__init__.py")
        cells = (f"`{name}`", first.replace("|", "\\|"), counterpart.replace("|", "\\|"))
        out.append("| " + " | ".join(cells) + " |")
    return out


def draw() -> str:
    """The whole map."""
    parts = [HEAD]
    for floor in FLOORS:
        package = ROOT / "dfuser" / floor
        table = rows(package)
        if not table:
            continue
        first, _ = summary(package / "__init__.py")
        parts.append(f"## {first}\n\n| file | what | in DragonFly |\n|---|---|---|")
        parts.append("\n".join(table) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the map, or check it."""
    text = draw()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        sys.stderr.write("docs/map.md is out of date: run scripts/map.py\n")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
