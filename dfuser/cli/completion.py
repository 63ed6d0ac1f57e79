"""``dfuser completion``: scripts that teach a shell the verbs and options."""

from __future__ import annotations

import click

from .verb import verb


@verb()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Examples:
      dfuser completion bash > ~/.local/share/bash-completion/completions/dfuser
      dfuser completion zsh > "${fpath[1]}/_dfuser"
      dfuser completion fish > ~/.config/fish/completions/dfuser.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    root = ctx.find_root().command
    click.echo(made(root, {}, "dfuser", "_DFUSER_COMPLETE").source())
