"""What every command understands, before and after its name: `-A`, `--db`, `--json` and the like.

The options are added to every command and group by the two classes below, and write what they were
given into one `Invocation`. Contexts are parsed from the left, so the later one wins. Only the
outermost command reads their environment variables: a variable must not win over an option that
was typed before the subcommand.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.text import did_you_mean, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Command",
    "Group",
    "Invocation",
    "duration",
    "pass_invocation",
    "size",
    "variable_of",
]


@dataclass(slots=True)
class Invocation:
    """Be what the shared options said. None and empty mean not given.

    `db` is a path or a URL. `output` is table, json or jsonl. `arguments` is the whole line.
    `is_watching` says that the command prints again and again.
    """

    app: str | None = None
    db: str | None = None
    config: Path | None = None
    output: str = "table"
    quiet: bool = False
    verbose: int = 0
    no_color: bool = False
    utc: bool = False
    arguments: tuple[str, ...] = ()
    is_watching: bool = False


pass_invocation = click.make_pass_decorator(Invocation)


class Command(click.Command):
    """Be a command that understands the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options(with_environment=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; variables are named after what is typed, where click takes the parameter's name."""
        for param in self.params:
            if isinstance(param, click.Option) and param.allow_from_autoenv and not param.envvar:
                param.envvar = variable_of(param, str(ctx.auto_envvar_prefix))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first."""
        _format_options(self, ctx, formatter)


class Group(click.Group):
    """Be a group of commands, each imported when it is asked for.

    `homes` maps a command's name to ``module:attribute``.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        homes: Mapping[str, str] | None = None,
        is_root: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options(with_environment=is_root)
        self._homes = dict(homes or {})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order they are declared in."""
        return [*self._homes, *(name for name in self.commands if name not in self._homes)]

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command's module, the first time it is asked for."""
        if cmd_name in self._homes and cmd_name not in self.commands:
            module, _, attribute = self._homes[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            self.commands[cmd_name] = command
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest one; click itself knows only those already imported."""
        command = self.get_command(ctx, args[0])
        if command is None and ctx.resilient_parsing:  # somebody is typing it, and pressed TAB
            return None, None, []
        if command is None:
            near = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"no command {quoted(args[0])}.{near}", ctx)
        return args[0], command, args[1:]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands first, then the shared options."""
        self.format_commands(ctx, formatter)
        _format_options(self, ctx, formatter)


def variable_of(option: click.Option, prefix: str) -> str:
    """Return the environment variable of an option: ``SQLQUEUE_INSPECT_JOBS_STATE`` of ``--state``.

    `prefix` is the command's path, ``sqlqueue_inspect_jobs``.
    """
    typed = next(name for name in option.opts if name.startswith("--"))
    return f"{prefix}_{typed[2:]}".replace("-", "_").upper()


def duration(text: str) -> float:
    """Read ``2s``, ``10m``, ``1h30m`` or plain seconds, as the settings do: a type for options."""
    from sqlqueue.config import duration_s
    from sqlqueue.errors import ConfigError

    try:
        return duration_s(text, name="duration")
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def size(text: str) -> int:
    """Read ``200MB``, ``512KiB`` or plain bytes, as the settings do: a type for options."""
    from sqlqueue.config import size_bytes
    from sqlqueue.errors import ConfigError

    try:
        return size_bytes(text, name="size")
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


_SHARED: Final = frozenset(
    {"app", "db", "config", "output", "as_json", "quiet", "verbose", "no_color", "utc", "version"}
)


def _shared_options(*, with_environment: bool) -> list[click.Parameter]:
    def option(*names: str, **settings: Any) -> click.Option:
        variable = settings.pop("variable", None)
        if with_environment and variable:
            settings["envvar"] = variable
        return click.Option(
            names,
            expose_value=False,
            allow_from_autoenv=False,
            callback=settings.pop("callback", _remember),
            **settings,
        )

    return [
        option(
            "-A",
            "--app",
            variable="SQLQUEUE_APP",
            metavar="MODULE:ATTR",
            help="The application, such as tasks.app:app. [SQLQUEUE_APP]",
        ),
        # These two are read from the environment where the settings are resolved, so that
        # `config show` can tell where they came from.
        option("--db", metavar="PATH", help="The queue file, or a broker URL. [SQLQUEUE_DB]"),
        option(
            "--config",
            metavar="FILE",
            help="The settings file; default: sqlqueue.toml, conf/sqlqueue.toml. [SQLQUEUE_CONFIG]",
        ),
        option(
            "-o",
            "--output",
            variable="SQLQUEUE_OUTPUT",
            type=click.Choice(["table", "json", "jsonl"]),
            help="How to print data. [SQLQUEUE_OUTPUT]",
        ),
        option("--json", "as_json", is_flag=True, help="The same as -o json."),
        option(
            "-q",
            "--quiet",
            variable="SQLQUEUE_QUIET",
            is_flag=True,
            help="Print data and errors only. [SQLQUEUE_QUIET]",
        ),
        option(
            "-v",
            "--verbose",
            variable="SQLQUEUE_VERBOSE",
            count=True,
            help="Log more; show the traceback of an error. [SQLQUEUE_VERBOSE]",
        ),
        option(
            "--no-color",
            variable="SQLQUEUE_NO_COLOR",
            is_flag=True,
            help="No colours; NO_COLOR does the same. [SQLQUEUE_NO_COLOR]",
        ),
        option(
            "--utc",
            variable="SQLQUEUE_UTC",
            is_flag=True,
            help="Show times in UTC instead of local time. [SQLQUEUE_UTC]",
        ),
        option("--version", is_flag=True, is_eager=True, callback=_version, help="Print it."),
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # Also with ctx.resilient_parsing: which file was named counts for completions, too.
    if not value:
        return
    invocation = ctx.find_object(Invocation)
    if invocation is None:  # a test that calls a command alone
        invocation = ctx.find_root().obj = Invocation()
    if param.name == "as_json":
        invocation.output = "json"
    elif param.name == "config":
        invocation.config = Path(value)
    else:
        setattr(invocation, str(param.name), value)


def _version(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ARG001
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"sqlqueue {version('sqlqueue')}")
        except PackageNotFoundError:
            click.echo("sqlqueue (not installed)")
        ctx.exit()


def _format_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    own: list[tuple[str, str]] = []
    shared: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        # click 8.5 has a record for arguments, too: they stand in the line of usage.
        record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
        if record is not None:
            (shared if param.name in _SHARED else own).append(record)
    for title, records in (("Options", own), ("Shared options", shared)):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
