"""`sqlqueue console admin|ops`: the two web consoles."""

from __future__ import annotations

import sys

import click

from sqlqueue.cli.invocation import Command, Invocation, pass_invocation
from sqlqueue.cli.opening import apply_command_line, load, resolved

__all__ = ["console"]


@click.command(cls=Command)
@click.argument("role", type=click.Choice(["admin", "ops"]))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The port; default: 8501 for admin, 8502 for ops.",
)
@click.option(
    "--auth",
    type=click.Choice(["token", "none"]),
    default="token",
    show_default=True,
    help="Whether to ask for a token; none is for loopback addresses only.",
)
@click.option(
    "--token",
    help="The token, 16 characters or more; better set in the environment, since others see"
    " command lines. Default: one kept beside the queue file, its owner's alone.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="One more host name that browsers ask for, such as that of a proxy.",
)
@click.option("--browser/--no-browser", default=None, help="Open it; default: from a terminal.")
@pass_invocation
def console(
    invocation: Invocation,
    /,
    *,
    role: str,
    host: str,
    port: int | None,
    auth: str,
    token: str | None,
    names: tuple[str, ...],
    browser: bool | None,
) -> None:
    """Serve a web console: admin to look and act, ops to look only.

    It prints the link that opens it. Needs the extra: pip install 'sqlqueue[consoles]'.
    """
    from sqlqueue.consoles import launch
    from sqlqueue.consoles.source import Source

    apply_command_line(invocation)
    app = load(invocation)
    chosen = Source(resolved(app).settings, app, utc=invocation.utc)
    prepared = launch.prepared(
        role, host=host, port=port, auth=auth, token=token, names=names, chosen=chosen
    )

    def tell(url: str) -> None:
        # The link is the command's data: scripts and people take it from here.
        click.echo(url)
        if not invocation.quiet:
            reach = "" if prepared.is_local else ", and other machines reach it"
            click.echo(f"The {role} console is running{reach}. ctrl-c ends it.", err=True)
        sys.stdout.flush()

    wanted = sys.stdout.isatty() if browser is None else browser
    launch.serve(prepared, chosen, tell=tell, open_browser=wanted)
