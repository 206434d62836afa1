"""Commands whose parser depends on the backend: its options join the common ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lora_core.cli.command import Command
from lora_core.cli.option_fields import options_of, taken
from lora_core.errors import InputError, LoraCoreError, Problem
from lora_core.hub import PluginHub
from lora_core.intake.files import open_regular

_BACKEND, _OPTIONS = "lora_core.backend", "lora_core.backend_options"
_HEAD = 4096
"""The backend stands near the beginning of a manifest."""


class BackendCommand(Command):
    """Has the options of one backend; `--help` shows those of every installed backend.

    The callback gets those that were given as `options`, by field name.
    """

    @abstractmethod
    def chosen(self, args: Sequence[str]) -> str | None:
        """Return the backend that `args` ask for, None if they do not say."""

    @abstractmethod
    def options_class(self, hub: PluginHub, backend: str) -> type[Any] | None:
        """Return the attrs class whose fields are options of this command, None if `backend` has none."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the common options and those of the chosen backend."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the backend first: it decides which options there are."""
        backend = self.chosen(args)
        ctx.meta[_BACKEND] = backend
        # An unknown backend is refused here, before its options look unknown as well.
        if backend is not None and "--help" not in args:
            ctx.meta[_OPTIONS] = self._options(_hub(ctx), backend)
        rest = super().parse_args(ctx, args)
        ctx.params["options"] = taken(ctx.params)
        return rest

    def unknown_option(self, ctx: click.Context, error: click.NoSuchOption) -> Problem:
        """Say whose option it is, if another backend has it."""
        owners = [
            name
            for name, options in self._options_by_backend(_hub(ctx))
            if isinstance(options, list) and any(error.option_name in (*o.opts, *o.secondary_opts) for o in options)
        ]
        if not owners:
            return super().unknown_option(ctx, error)
        what = f"{error.option_name} is an option of backend {' and '.join(map(repr, owners))}"
        if ctx.meta[_BACKEND] is None:
            return Problem(what=what, remedy=self.remedy(owners))
        return Problem(what=f"{what}, which {ctx.meta[_BACKEND]!r} does not have")

    def heading(self, backend: str) -> str:
        """Return what stands above the options of `backend` in the help."""
        return f"With --backend {backend}"

    def remedy(self, owners: Sequence[str]) -> str:
        """Return what to do about an option of backends `owners` where no backend was chosen."""
        return f"Say which with --backend {'|'.join(owners)}."

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the common options, then those of each backend under its own heading."""
        super().format_options(ctx, formatter)
        for name, options in self._options_by_backend(_hub(ctx)):
            if not options:
                continue
            with formatter.section(self.heading(name)):
                if isinstance(options, str):
                    formatter.write_text(options)
                else:
                    records = [option.get_help_record(ctx) for option in options]
                    formatter.write_dl([record for record in records if record is not None])

    def _options(self, hub: PluginHub, backend: str) -> list[click.Option]:
        cls = self.options_class(hub, backend)
        return [] if cls is None else options_of(cls)

    def _options_by_backend(self, hub: PluginHub) -> Iterator[tuple[str, list[click.Option] | str]]:
        """Yield every backend with its options, or with what is wrong if they cannot be had."""
        for name in hub.backends:
            try:
                yield name, self._options(hub, name)
            except LoraCoreError as error:
                yield name, str(error)


class ExportCommand(BackendCommand):
    """Has the export options of the backend that `--backend` names."""

    def chosen(self, args: Sequence[str]) -> str | None:
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

    def options_class(self, hub: PluginHub, backend: str) -> type[Any]:
        """Return the export options of `backend`."""
        return hub.backend_options(backend)


class SessionCommand(BackendCommand):
    """Has the session options of the backend that made the bundle which the command line names."""

    def chosen(self, args: Sequence[str]) -> str | None:
        """Return the backend of the first bundle among `args`; a damaged one is the command's own business."""
        for word in args:
            backend = None if word.startswith("-") else _backend_of(Path(word))
            if backend is not None:
                return backend
        return None

    def options_class(self, hub: PluginHub, backend: str) -> type[Any] | None:
        """Return the session options of `backend`; of one that is not installed the command itself will say so."""
        return hub.session_options_class(backend) if backend in hub.backends else None

    def heading(self, backend: str) -> str:
        """Return what stands above the options of `backend` in the help."""
        return f"With a bundle of {backend}"

    def remedy(self, owners: Sequence[str]) -> str:
        """Return what to do about an option where no bundle was named."""
        return f"Name a bundle that {' or '.join(owners)} made."


def _backend_of(path: Path) -> str | None:
    import re

    try:
        with open_regular(path / "manifest.json", InputError) as file:
            found = re.search(rb'"backend":\s*"([^"\\]+)"', file.read(_HEAD))
    except (OSError, ValueError, InputError):
        return None
    return found[1].decode("utf-8", "replace") if found else None


def _hub(ctx: click.Context) -> PluginHub:
    return ctx.ensure_object(PluginHub)
