"""The rules of the house that no linter knows, checked on the syntax tree of each file."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfuser
from dfuser.libkern.sysctl import NODE, declarations

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dfuser"
FILES = sorted(PACKAGE.rglob("*.py"))
HOT = {"lwkt", "vm", "vfs", "fuse"}
FILE_SYSTEMS = sorted(
    path.parent.name
    for path in (PACKAGE / "vfs").glob("*/__init__.py")
    if path.parent.is_dir() and path.parent.name != "syscalls"
)
FUNCTION_LINES = 80
FILE_LINES = 900
# Values a module may hold: nobody can change them.
CONSTANT_CALLS = {
    "KtrInfo", "MappingProxyType", "NewType", "ParamSpec", "Path", "Struct", "Sysctl", "TypeVar",
    "bool", "bytes", "calcsize", "compile", "encode", "float", "frozenset", "from_bytes",
    "fromhex", "getLogger", "getattr", "hasattr", "int", "join", "len", "max", "min", "object",
    "range", "root", "str", "sum", "sysconf", "to_bytes", "tuple", "uname", "_replace",
    "attrgetter", "itemgetter", "UUID",
}  # fmt: skip


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """File and line for a message."""
    line = getattr(node, "lineno", 1)
    return f"{path.relative_to(ROOT)}:{line}"


def report(bad: list[str]) -> str:
    """All findings, one a line; pytest itself would shorten the list."""
    return "\n" + "\n".join(bad)


def package_of(path: Path) -> str:
    """The first folder below dfuser, or the empty string."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(node: ast.expr) -> str:
    """The last word of what is named or called: ``Struct`` of ``struct.Struct("<I")``."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def frozen_classes(tree: ast.Module) -> set[str]:
    """The classes of a file whose instances cannot be changed."""
    names = set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        frozen = {"frozen"} & {name_of(decorator) for decorator in node.decorator_list}
        values = {"NamedTuple", "Enum", "IntEnum", "IntFlag"} & {name_of(b) for b in node.bases}
        empty_slots = any(
            isinstance(entry, ast.Assign)
            and name_of(entry.targets[0]) == "__slots__"
            and ast.unparse(entry.value) == "()"
            for entry in node.body
        )
        if frozen or values or empty_slots:
            names.add(node.name)
    return names


def mutable(value: ast.expr | None, frozen: set[str]) -> bool:
    """Whether an expression at module level makes something that can be changed."""
    if value is None:
        return False
    if isinstance(value, ast.Call):
        return name_of(value) not in CONSTANT_CALLS | frozen
    return isinstance(
        value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    )


def test_there_is_something_to_check() -> None:
    # What if the files were not found and every rule below passed for that reason?
    assert len(FILES) > 30


def test_head_docstrings() -> None:
    # What if a file of more than 20 lines does not say what it is for?
    bad = [
        where(path)
        for path in FILES
        if len(path.read_text().splitlines()) > 20 and not ast.get_docstring(parse(path))
    ]
    assert not bad, report(bad)


def test_every_package_is_described() -> None:
    # What if a folder with code has no __init__.py, or one that says nothing?
    folders = {path.parent for path in FILES}
    bad = [
        str(folder.relative_to(ROOT))
        for folder in sorted(folders)
        if not (folder / "__init__.py").exists()
        or not ast.get_docstring(parse(folder / "__init__.py"))
    ]
    assert not bad, report(bad)


def test_no_print_outside_cli() -> None:
    # What if a room writes to a terminal that is not its own?
    bad = [
        where(path, node)
        for path in FILES
        if package_of(path) != "cli"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not bad, report(bad)


def test_no_mutable_module_state() -> None:
    # What if two kernels in one process share a variable? Only curthread may exist.
    bad = []
    frozen = {name for path in FILES for name in frozen_classes(parse(path))}
    for path in FILES:
        for node in parse(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            names = {getattr(target, "id", "") for target in targets}
            if names & {"curthread", "__all__"}:
                continue
            if targets and mutable(getattr(node, "value", None), frozen):
                bad.append(where(path, node))
    assert not bad, report(bad)


def test_no_global_statement() -> None:
    # What if a function rebinds a module variable other than curthread?
    bad = [
        where(path, node)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Global) and set(node.names) - {"curthread"}
    ]
    assert not bad, report(bad)


def test_no_generator_context_managers_on_hot_paths() -> None:
    # What if a kernel path pays 20 calls for a with statement?
    bad = [
        where(path, function)
        for path in FILES
        if package_of(path) in HOT
        for function in functions(parse(path))
        for decorator in function.decorator_list
        if name_of(decorator) in {"contextmanager", "asynccontextmanager"}
    ]
    assert not bad, report(bad)


def test_no_trio_locks_in_the_kernel() -> None:
    # What if a kernel path waits in trio's queue, where LWKT does not see it?
    locks = {"Lock", "StrictFIFOLock", "Semaphore", "CapacityLimiter", "Condition"}
    bad = [
        where(path, node)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and node.attr in locks
        and getattr(node.value, "id", "") == "trio"
    ]
    assert not bad, report(bad)


def test_sizes() -> None:
    # What if a function or a file grows past what a reader can hold?
    bad = []
    for path in FILES:
        lines = len(path.read_text().splitlines())
        if lines > FILE_LINES:
            bad.append(f"{where(path)}: {lines} lines")
        for function in functions(parse(path)):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > FUNCTION_LINES:
                bad.append(f"{where(path, function)}: {function.name} has {length} lines")
    assert not bad, report(bad)


def test_nothing_unfinished() -> None:
    # What if somebody left a promise instead of code?
    words = ("TODO", "FIXME", "XXX", "HACK", "for now")
    bad = []
    for path in FILES:
        with path.open("rb") as source:
            for token in tokenize.tokenize(source.readline):
                if token.type == tokenize.COMMENT and any(w in token.string for w in words):
                    bad.append(f"{where(path)}: line {token.start[0]}: {token.string}")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Raise) and node.exc is not None:
                bad += [where(path, node)] * (name_of(node.exc) == "NotImplementedError")
    assert not bad, report(bad)


def test_annotations_are_lazy() -> None:
    # What if a file forgets the future import and evaluates annotations at import?
    bad = [
        where(path)
        for path in FILES
        if len(path.read_text().splitlines()) > 20
        and path.name != "__init__.py"
        and "from __future__ import annotations" not in path.read_text()
    ]
    assert not bad, report(bad)


def imported(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The modules a file imports, by full name."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def test_file_systems_are_strangers() -> None:
    # What if one file system leans on another, so that neither can be read alone?
    bad = []
    for name in FILE_SYSTEMS:
        others = {f"dfuser.vfs.{other}" for other in FILE_SYSTEMS} - {f"dfuser.vfs.{name}"}
        for path in (PACKAGE / "vfs" / name).rglob("*.py"):
            for module, node in imported(path):
                if any(module == other or module.startswith(other + ".") for other in others):
                    bad.append(f"{where(path, node)}: imports {module}")
    assert not bad, report(bad)


def test_the_import_contract_knows_every_file_system() -> None:
    # What if a new file system were left out of the contract that keeps them apart?
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    listed = next(c["modules"] for c in contracts if c["id"] == "file-systems")
    assert sorted(listed) == [f"dfuser.vfs.{name}" for name in FILE_SYSTEMS]


@pytest.mark.parametrize("package", ["pyfuse3", "psutil", "sortedcontainers"])
def test_a_third_party_package_has_one_door(package: str) -> None:
    # What if the whole house depends on a package that only one room should know?
    doors = {
        "pyfuse3": ("fuse", "cli/doctor.py"),
        "psutil": ("hw", "obs", "cli", "soak"),
        "sortedcontainers": ("libkern/tree.py",),
    }[package]
    bad = [
        where(path, node)
        for path in FILES
        for module, node in imported(path)
        if module.split(".")[0] == package and not str(path.relative_to(PACKAGE)).startswith(doors)
    ]
    assert not bad, report(bad)


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_each_test_says_its_what_if() -> None:
    # What if a test fails and nobody knows which question it answers?
    bad = []
    for path in TESTS:
        lines = path.read_text().splitlines()
        for function in functions(parse(path)):
            if not function.name.startswith("test_"):
                continue
            before = lines[function.lineno - 1 : function.body[0].lineno]
            comment = any(line.strip().startswith("#") for line in before)
            if not comment and not ast.get_docstring(function):
                bad.append(where(path, function) + f": {function.name}")
    assert not bad, report(bad)


def test_tests_do_not_sleep() -> None:
    # What if a test passes only because it waited long enough?
    bad = [
        where(path, node)
        for path in TESTS
        if "unit" in path.parts
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and getattr(node.func.value, "id", "") == "time"
    ]
    assert not bad, report(bad)


def test_sysctl_names_fit_into_one_tree() -> None:
    # What if two classes claimed one name, or a leaf were also a node: boot would fail late.
    owners: dict[str, set[str]] = {}
    for info in pkgutil.walk_packages(dfuser.__path__, "dfuser."):
        module = importlib.import_module(info.name)
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == info.name:
                for decl in declarations(cls):
                    if isinstance(decl.name, str) and decl.kind is not NODE:
                        owners.setdefault(decl.name, set()).add(f"{info.name}.{cls.__name__}")
    bad = [f"{name}: {sorted(found)}" for name, found in owners.items() if len(found) > 1]
    parents = {name[:at] for name in owners for at, letter in enumerate(name) if letter == "."}
    bad += [f"{name} is a leaf and a node" for name in owners if name in parents]
    assert len(owners) > 20
    assert not bad, report(bad)
