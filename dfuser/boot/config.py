"""What kernel to boot: every setting, where it may come from, and which source won.

Sources, strongest first: flags of the command line, environment variables ``DFUSER_*``, a TOML
file, the defaults here. Each value remembers its origin, so that `Config.explain` can tell a person
why it is what it is.

Counterpart: kenv and loader tunables (sys/kern/kern_environment.c), config/ of the kernel build.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from dfuser.vfs.vnodetable import MAXVNODES, MINVNODES

_UNITS: Final = MappingProxyType({"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40})
_SIZE: Final = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_ENV: Final = "DFUSER_"
MIN_MEMORY: Final = 4 << 20


class ConfigError(ValueError):
    """A setting cannot be used; the text names it, its origin, and what it may be."""


def parse_size(text: str | int) -> int:
    """Bytes for "64M", "2g", 4096; raises ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a size (a number with k, m or g)")
    return int(match[1]) * _UNITS[match[2].lower()]


@attrs.frozen
class MountSpec:
    """One mount of the world to make at boot."""

    fstype: str
    on: str
    """Absolute path inside; "/" is the root."""
    source: str = ""
    options: str = ""
    """Comma separated, as in ``-o``."""

    def option_map(self) -> dict[str, str]:
        """The options by name; a name without value maps to ""."""
        pairs = (item.partition("=") for item in self.options.split(",") if item)
        return {name.strip(): value for name, _, value in pairs}


#: Host programs may make symbolic links of 4095 bytes; DragonFly's own limit is 1023.
HOST_TMPFS: Final = "maxsymlink=4095"

DEFAULT_WORLD: Final = (
    MountSpec("tmpfs", "/", "tmpfs", HOST_TMPFS),
    MountSpec("tmpfs", "/tmp", "tmpfs", f"mode=1777,{HOST_TMPFS}"),
    MountSpec("devfs", "/dev", "devfs"),
    MountSpec("procfs", "/proc", "procfs"),
    MountSpec("sysctlfs", "/sysctl", "sysctl"),
    MountSpec("kernfs", "/kern", "kern"),
)


def _default_memory() -> int:
    """A quarter of the host's memory, at most 4 GiB, as whole MiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(MIN_MEMORY, min(total // 4, 4 << 30) >> 20 << 20)


@attrs.frozen
class Config:
    """All settings of one kernel."""

    ncpu: int = 0
    """Logical CPUs; 0: as many as the host lets us use."""
    memory: int = attrs.field(factory=_default_memory)
    """Physical memory in bytes."""
    hostname: str = "dfuser"
    seed: int | None = None
    """Seed of the kernel's choices; None: from the host's entropy."""
    maxvnodes: int = 0
    """kern.maxvnodes; 0: from the size of memory."""
    ktr: tuple[str, ...] = ()
    """Trace masters that are on from the start."""
    world: tuple[MountSpec, ...] = DEFAULT_WORLD
    sysctl: Mapping[str, str] = attrs.field(factory=dict)
    """Settings applied once the kernel is up."""
    state_dir: str = ""
    """Where panic dumps go; empty: ``$XDG_STATE_HOME/dfuser``."""
    origin: Mapping[str, str] = attrs.field(factory=dict, eq=False)

    def __attrs_post_init__(self) -> None:
        self._check("ncpu", 0 <= self.ncpu <= 256, "0 to 256")
        self._check("memory", self.memory >= MIN_MEMORY, "at least 4M")
        self._check("memory", self.memory % 4096 == 0, "a multiple of 4096")
        self._check("hostname", 0 < len(self.hostname) < 256, "1 to 255 characters")
        bounded = MINVNODES <= self.maxvnodes <= MAXVNODES
        self._check("maxvnodes", not self.maxvnodes or bounded, "0 or 2000 to 4000000")
        roots = [spec for spec in self.world if spec.on == "/"]
        self._check("world", len(roots) == 1, "mounts of which exactly one is on /")

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            origin = self.origin.get(name, "default")
            value = getattr(self, name)
            raise ConfigError(f"{name} = {value!r} ({origin}) is not {allowed}")

    def state_path(self) -> Path:
        """The directory for dumps; not created."""
        if self.state_dir:
            return Path(self.state_dir)
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return Path(base) / "dfuser"

    def explain(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting."""
        rows = []
        for field in attrs.fields(Config):
            if field.name == "origin":
                continue
            value = getattr(self, field.name)
            if field.name == "world":
                value = " ".join(f"{spec.fstype}:{spec.on}" for spec in value)
            rows.append((field.name, str(value), self.origin.get(field.name, "default")))
        return rows

    def with_root(self, fstype: str, source: str, options: str = "") -> Config:
        """The same world on another root; a tmpfs gets the host's limits unless told otherwise."""
        if fstype == "tmpfs" and "maxsymlink" not in options:
            options = f"{options},{HOST_TMPFS}" if options else HOST_TMPFS
        rest = tuple(spec for spec in self.world if spec.on != "/")
        return attrs.evolve(self, world=(MountSpec(fstype, "/", source, options), *rest))


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Config:
    """Gather a `Config` from all sources. Raises `ConfigError`.

    Args:
        flags: settings given on the command line; None values count as not given.
        environ: where ``DFUSER_NCPU`` and the like are looked up.
        path: a TOML file; its keys are the field names, ``[[world]]`` the mounts.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def take(source: str, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            if value is None:
                continue
            values[name] = _convert(name, value, source)
            origin[name] = source

    if path is not None:
        take(f"file {os.fspath(path)}", _read_toml(path))
    known = {field.name for field in attrs.fields(Config)} - {"origin", "world", "sysctl"}
    environ = environ or {}
    variables = {name: _ENV + name.upper() for name in known}
    take("environment", {n: environ[v] for n, v in variables.items() if v in environ})
    take("flag", flags or {})
    return Config(**values, origin=origin)


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{os.fspath(path)} is not TOML: {error}") from None


def _convert(name: str, value: Any, source: str) -> Any:
    """Bring one raw value to its field's type."""
    try:
        return _CONVERTERS[name](value)
    except KeyError:
        known = ", ".join(sorted(_CONVERTERS))
        raise ConfigError(f"{source}: there is no setting {name!r}; there are {known}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {name}: {error}") from None


def _whole(value: Any) -> int:
    """A whole number, as TOML or text has it; a truth value or a fraction is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError(f"not a whole number: {value!r}")


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [item for item in re.split(r"[,\s]+", value) if item]
    return tuple(str(item) for item in value)


def _world(value: Any) -> tuple[MountSpec, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError("world is a list of [[world]] tables")
    return tuple(item if isinstance(item, MountSpec) else _mount_spec(item) for item in value)


def _mount_spec(table: Any) -> MountSpec:
    """One ``[[world]]`` table of a file."""
    if not isinstance(table, Mapping):
        raise TypeError("world is a list of [[world]] tables")
    known = [field.name for field in attrs.fields(MountSpec)]
    strange = sorted(table.keys() - set(known))
    if strange:
        raise ValueError(f"a mount has {', '.join(known)}, not {strange[0]!r}")
    if not {"fstype", "on"} <= table.keys():
        raise ValueError("a mount needs fstype and on")
    return MountSpec(**{name: str(value) for name, value in table.items()})


def _table(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError("sysctl is a table of name = value")
    return {str(name): str(item) for name, item in value.items()}


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        "ncpu": _whole,
        "memory": parse_size,
        "hostname": str,
        "seed": _whole,
        "maxvnodes": _whole,
        "ktr": _names,
        "world": _world,
        "sysctl": _table,
        "state_dir": str,
    }
)
