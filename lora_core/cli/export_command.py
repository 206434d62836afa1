"""The `export` command's parser: the options of the chosen backend join the common ones."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lora_core.cli.backend_options import options_by_backend, options_of, taken
from lora_core.cli.command import Command
from lora_core.errors import Problem
from lora_core.hub import PluginHub


class ExportCommand(Command):
    """Has the options of the backend that `--backend` names; `--help` shows those of every installed backend.

    The callback gets those that were given as `options`, by field name.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the common options and those of the chosen backend."""
        return [*super().get_params(ctx), *ctx.meta.get("lora_core.backend_options", [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the backend first: it decides which options there are."""
        hub = _hub(ctx)
        backend = _chosen(args)
        ctx.meta["lora_core.backend"] = backend
        # An unknown backend is refused here, before its options look unknown as well.
        if backend is not None and "--help" not in args:
            ctx.meta["lora_core.backend_options"] = options_of(hub, backend)
        rest = super().parse_args(ctx, args)
        ctx.params["options"] = taken(ctx.params)
        return rest

    def unknown_option(self, ctx: click.Context, error: click.NoSuchOption) -> Problem:
        """Say whose option it is, if another backend has it."""
        owners = [
            name
            for name, options in options_by_backend(_hub(ctx))
            if isinstance(options, list) and any(error.option_name in (*o.opts, *o.secondary_opts) for o in options)
        ]
        if not owners:
            return super().unknown_option(ctx, error)
        chosen = ctx.meta["lora_core.backend"]
        what = f"{error.option_name} is an option of backend {' and '.join(map(repr, owners))}"
        if chosen is None:
            return Problem(what=what, remedy=f"Say which with --backend {'|'.join(owners)}.")
        return Problem(what=f"{what}, which {chosen!r} does not have")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the common options, then those of each backend under its own heading."""
        super().format_options(ctx, formatter)
        for name, options in options_by_backend(_hub(ctx)):
            with formatter.section(f"With --backend {name}"):
                if isinstance(options, str):
                    formatter.write_text(options)
                else:
                    records = [option.get_help_record(ctx) for option in options]
                    formatter.write_dl([record for record in records if record is not None])


def _hub(ctx: click.Context) -> PluginHub:
    return ctx.ensure_object(PluginHub)


def _chosen(args: Sequence[str]) -> str | None:
    """Return the value of the last `--backend` in `args`."""
    chosen = None
    for index, word in enumerate(args):
        if word == "--":
            break
        if word.startswith("--backend="):
            chosen = word.partition("=")[2]
        elif word == "--backend" and index + 1 < len(args):
            chosen = args[index + 1]
    return chosen
