"""The command `lora-core`: its commands are plugins' as any other, and imported when they are used."""

from __future__ import annotations

import click

from lora_core.errors import UsageError
from lora_core.hub import PluginHub
from lora_core.suggestions import did_you_mean

EXIT_CODES = "Exit codes: 0 done, 1 defect, 2 usage, 3 bad input, 4 unsupported, 5 check failed, 6 plugin, 7 I/O."


class CommandGroup(click.Group):
    """The commands of a hub; `--help` lists them from their descriptors."""

    def __init__(self, hub: PluginHub) -> None:
        super().__init__(
            name="lora-core",
            help="Export one base model with any number of LoRA adapters, the base stored once.",
            epilog=EXIT_CODES,
            params=[_version_option()],
        )
        self._hub = hub

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """Return all command names, the core's first."""
        return list(self._hub.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 click's
        """Import one command."""
        if cmd_name not in self._hub.commands:
            return None
        command: click.Command = self._hub.command(cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of `args`; an unknown one is refused with the likely one and all choices."""
        if args[0] not in self._hub.commands and not args[0].startswith("-"):
            remedy = did_you_mean(args[0], self._hub.commands)
            raise UsageError(f"There is no command {args[0]!r}", remedy=remedy)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 click's
        """Write names and summaries, those of plugins with their distribution."""
        rows = []
        for name, spec in self._hub.commands.items():
            origin = self._hub.commands.entry(name).origin
            rows.append((name, spec.summary if origin.core else f"{spec.summary} ({origin.distribution})"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        if self._hub.faults:
            formatter.write_paragraph()
            formatter.write_text("Some plugins have problems: see `lora-core backends`.")


def _version_option() -> click.Option:
    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            from lora_core.version import __version__

            click.echo(f"lora-core {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version."
    )
