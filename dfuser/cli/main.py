"""The command ``dfuser``: its verbs, and how every error becomes one line and an exit code.

Verbs are found in `VERBS` and imported when they are used, so that ``dfuser --help`` and completion
are quick. As ``mount.fuse.dfuser`` or ``mount.dfuser`` the program is a helper of mount(8): the
arguments are those of ``dfuser mount -d``, and a failure exits with 32.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn

import click

from .exits import CliError, ExitCode
from .output import clean


class Verb(NamedTuple):
    """Where a verb lives and what the overview says about it."""

    section: str
    help: str


#: The verbs in the order of the overview; the file of each is called as it is.
VERBS: Final = MappingProxyType(
    {
        "demo": Verb("Run", "Mount a world with everything on and say what to try."),
        "mount": Verb("Run", "Boot a kernel and mount it on a directory."),
        "umount": Verb("Run", "Sync and unmount, and wait until all is gone."),
        "run": Verb("Run", "Run a command in a throw-away world."),
        "sync": Verb("Run", "Write everything dirty."),
        "doctor": Verb("Run", "Check what this machine needs to mount, and say how to mend it."),
        "ps": Verb("Inspect", "List processes and threads of the kernel."),
        "sysctl": Verb("Inspect", "Show and change kernel variables."),
        "mounts": Verb("Inspect", "List what is mounted inside."),
        "df": Verb("Inspect", "Show how full the file systems inside are."),
        "nlookup": Verb("Inspect", "Walk a path and show what the namecache does."),
        "vnodes": Verb("Inspect", "List vnodes in memory."),
        "ports": Verb("Inspect", "List message ports."),
        "dmesg": Verb("Inspect", "Show the kernel log."),
        "ktr": Verb("Inspect", "Show and switch kernel tracing."),
        "trace": Verb("Inspect", "Show the host's requests as they come, decoded."),
        "ddb": Verb("Inspect", "Run a command of the kernel debugger."),
        "newfs": Verb("Disk images", "Make a HAMMER2 volume in an image."),
        "info": Verb("Disk images", "Show the headers, space and PFSs of HAMMER2 images."),
        "ls": Verb("Disk images", "List files in a HAMMER2 image."),
        "cat": Verb("Disk images", "Print files out of a HAMMER2 image."),
        "cp": Verb("Disk images", "Copy files out of a HAMMER2 image."),
        "fsck": Verb("Disk images", "Check a HAMMER2 image, deeper than DragonFly does."),
        "hammer2": Verb("Disk images", "Look at HAMMER2 images with DragonFly's directives."),
        "soak": Verb("Test", "Load a mounted dfuser for minutes and check it."),
        "config": Verb("Set up", "Show every setting and where its value comes from."),
        "completion": Verb("Set up", "Print the completion script of a shell."),
    }
)
_HELPERS: Final = frozenset({"mount.fuse.dfuser", "mount.dfuser"})


class Verbs(click.Group):
    """The group of verbs; imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the overview."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, or None."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is told the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f"did you mean '{near[0]}'?" if near else "see 'dfuser --help'"
            ctx.fail(f"there is no verb {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, by section, without importing a verb."""
        for section in dict.fromkeys(verb.section for verb in VERBS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, verb.help) for name, verb in VERBS.items() if verb.section == section]
                )


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from dfuser import __version__

        click.echo(f"dfuser {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'dfuser VERB --help' says more and has examples. Start with 'dfuser demo'.",
)
@click.option("-m", "--mount", "mountpoint", metavar="DIR",
              help="Talk to the dfuser mounted on DIR (default: the only one).")  # fmt: skip
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.option("-V", "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version,
              help="Show the version and exit.")  # fmt: skip
@click.pass_context
def group(ctx: click.Context, mountpoint: str | None, traceback: bool) -> None:
    """DragonFly BSD's kernel as one ordinary process that can be mounted."""
    ctx.obj = mountpoint


def fail(text: str, code: int) -> int:
    """Print an error as one line; returns the code."""
    print(f"dfuser: {clean(text.strip())}", file=sys.stderr)
    return code


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors are printed."""
    try:
        result = group.main(list(args), prog_name="dfuser", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except BaseException as error:
        words = args[: args.index("--")] if "--" in args else args
        return report(error, show="--traceback" in words)


def report(error: BaseException, *, show: bool = False) -> int:
    """Tell the user about an error; returns the exit code it means."""
    if isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.SIGNAL + 13
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.SIGNAL + 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.OK
    if show or os.environ.get("DFUSER_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    return _failed(error)


def _failed(error: BaseException) -> int:
    """Tell an error; its exit code."""
    if isinstance(error, CliError):
        return fail(str(error), error.code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message())
        return ExitCode.USAGE
    if isinstance(error, click.ClickException):
        text = error.format_message().rstrip(".")
        ctx = getattr(error, "ctx", None)
        where = ctx.command_path if ctx is not None else "dfuser"
        hint = (
            ""
            if "see '" in text or "did you mean" in text.lower()
            else (f" (see '{where} --help')")
        )
        return fail(f"{text[:1].lower()}{text[1:]}{hint}", ExitCode.USAGE)
    from .talk import explain

    known = explain(error)
    if known is not None:
        return fail(str(known), known.code)
    kind = type(error).__name__
    return fail(
        f"a bug in dfuser: {kind}: {error} (run again with --traceback and report it)",
        ExitCode.INTERNAL,
    )


def helper_args(args: Sequence[str]) -> list[str]:
    """The arguments of ``dfuser mount`` for those mount(8) gives its helpers."""
    out, rest = ["mount", "-d"], list(args)
    while rest:
        word = rest.pop(0)
        if word in ("-n", "-s", "-v", "-f"):
            continue
        if word in ("-t", "-N") and rest:
            rest.pop(0)
        elif word in ("-r", "-w"):
            out += ["-o", "ro" if word == "-r" else "rw"]
        else:
            out.append(word)
    return out


def main() -> NoReturn:
    """The entry point."""
    args = sys.argv[1:]
    if os.path.basename(sys.argv[0]) in _HELPERS:
        code = run(helper_args(args))
        sys.exit(code if code in (ExitCode.OK, ExitCode.USAGE) else ExitCode.HELPER)
    sys.exit(run(args))
