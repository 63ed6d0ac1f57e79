"""Compilers on the mount: a C project with make -j2, and Python's compileall.

The C project is Debian's source of lua5.4, fetched with apt where Debian's archive is reachable;
else a generated project of 60 files takes its place, and the test's name says which it was.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.tools import run

pytestmark = pytest.mark.mount
FILES = 60
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture(scope="session")
def debian_source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The original archive of Debian's lua5.4, fetched without touching the host's apt lists."""
    place = tmp_path_factory.mktemp("apt")
    for name in ("lists/partial", "cache"):
        (place / name).mkdir(parents=True)
    line = f"deb-src [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main\n"
    (place / "sources.list").write_text(line)
    options = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::http::Timeout": 10,
        "Acquire::Retries": 0,
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    for command in (["update"], ["source", "--download-only", "lua5.4"]):
        done = subprocess.run(
            ["apt-get", "-q", *flags, *command], cwd=place, capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"Debian's archive is not reachable: {done.stderr[-200:]!r}")
    yield next(place.glob("lua5.4_*.orig.tar.*"))
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_make_debians_lua(place: Path, twin: Path, debian_source: Path) -> None:
    """What if gcc, ar or make -j2 met a file with other bytes, or times that make distrusts."""
    built = []
    for root in (twin, place):
        with tarfile.open(debian_source) as archive:
            archive.extractall(root, filter="data")
        source = next(root.glob("lua*/src"))
        run("make", "-j2", "generic", "MYCFLAGS=-g0", cwd=source)
        assert run(source / "lua", "-e", "print(6 * 7)") == "42\n"
        built.append((source / "lua").read_bytes())
    assert built[0] == built[1]


def generate(root: Path) -> None:
    """Write a C project: 60 files that call one another, a header, a library, a program."""
    (root / "all.h").write_text("".join(f"int f{n}(int);\n" for n in range(FILES)))
    for n in range(FILES):
        call = f"f{n - 1}(x) + " if n else ""
        body = "".join(f"static int g{k}(int x) {{ return x * {k} + {n}; }}\n" for k in range(20))
        use = " + ".join(f"g{k}(x)" for k in range(20))
        (root / f"f{n}.c").write_text(
            f'#include "all.h"\n{body}int f{n}(int x) {{ return {call}({use}) % 1000; }}\n'
        )
    (root / "main.c").write_text(
        '#include <stdio.h>\n#include "all.h"\n'
        f'int main(void) {{ printf("%d\\n", f{FILES - 1}(3)); return 0; }}\n'
    )
    objects = " ".join(f"f{n}.o" for n in range(FILES))
    (root / "Makefile").write_text(
        f"program: main.o libf.a\n\tcc -o $@ main.o libf.a\nlibf.a: {objects}\n"
        "\tar rcsD $@ $^\n%.o: %.c all.h\n\tcc -O0 -c -o $@ $<\n"
    )


@pytest.mark.slow
def test_make_a_generated_project_of_60_files(place: Path, twin: Path) -> None:
    """What if a parallel build made another program here than on the host."""
    said = []
    for root in (twin, place):
        generate(root)
        run("make", "-j2", cwd=root)
        said.append((run(root / "program"), (root / "program").read_bytes()))
        assert "up to date" in run("make", cwd=root)
        (root / "f7.c").touch()
        assert run("make", cwd=root).count("cc -O0") == 1
    assert said[0] == said[1]


def test_compile_one_program(place: Path) -> None:
    """What if gcc's temporary files, mappings or the linker's seeks failed."""
    source = '#include <stdio.h>\nint main(void) { return puts("hi") < 0; }\n'
    (place / "hello.c").write_text(source)
    run("gcc", "-g", "-save-temps", "-o", "hello", "hello.c", cwd=place)
    assert run(place / "hello") == "hi\n"


def test_compileall(place: Path) -> None:
    """What if Python's byte-compiler lost a file, or its caches were not found again."""
    library = Path(shutil.__file__).parent
    for name in ("json", "email", "logging"):
        run("cp", "-r", library / name, place / name)
    for cache in list(place.rglob("__pycache__")):
        shutil.rmtree(cache)
    run(sys.executable, "-m", "compileall", "-q", place)
    sources, caches = list(place.rglob("*.py")), list(place.rglob("*.pyc"))
    assert len(sources) == len(caches) > 20
    stamps = {path: path.stat().st_mtime_ns for path in caches}
    run(sys.executable, "-m", "compileall", "-q", place)
    assert {path: path.stat().st_mtime_ns for path in caches} == stamps
    said = run(sys.executable, "-c", "import json; print(json.__file__)", cwd=place)
    assert said.startswith(str(place))
