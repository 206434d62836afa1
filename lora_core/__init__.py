"""One base model, any number of LoRA adapters, files that on-device runtimes load.

The library face: `export`, `add`, `remove`, `convert`, `fit_adapter`, `catalogue`, `pack`, `pack_all`, `ship`,
`inspect`, `open`, `verify` and `bench`. Importing this package imports nothing heavy; each function imports what it
needs. Every error is a `lora_core.errors.LoraCoreError`; progress comes as events (`lora_core.events`) to `emit`;
nothing is printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lora_core import moved
from lora_core.events import Emit, ignore
from lora_core.version import __version__

if TYPE_CHECKING:
    from lora_core.adapters.adapter import Adapter
    from lora_core.adapters.reference import AdapterReference
    from lora_core.bundle.bundle import Bundle
    from lora_core.fleet.fleet_report import FleetReport
    from lora_core.hub import PluginHub
    from lora_core.models.base import ModelHandle
    from lora_core.pipeline.catalogue import CatalogueEntry
    from lora_core.pipeline.fit_adapter import FittedAdapter
    from lora_core.pipeline.inspect import InspectReport
    from lora_core.pipeline.packing import PackedAdapter
    from lora_core.pipeline.shipping import Shipment
    from lora_core.pipeline.verify import VerifyReport
    from lora_core.quant.policy import QuantPolicy
    from lora_core.runtime.bench import BenchReport, BenchSettings
    from lora_core.runtime.session import Session

moved.install()

__all__ = [
    "Adapters",
    "__version__",
    "add",
    "bench",
    "catalogue",
    "convert",
    "export",
    "fit_adapter",
    "inspect",
    "open",
    "pack",
    "pack_all",
    "remove",
    "ship",
    "verify",
]

Adapters: TypeAlias = "Mapping[str, str | Path] | Sequence[AdapterReference]"
"""Directories (or files, or hub ids in the local cache) by adapter name, or references (which can also be two files, a
composite, or have a strength)."""


def export(
    model: str | Path | ModelHandle,
    *,
    adapters: Adapters = (),
    backend: str,
    policy: str | QuantPolicy | None = None,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    plan: Literal["union", "per-shape"] = "union",
    max_rank: int | None = None,
    targets: str | Sequence[str] | None = None,
    group_size: int | None = None,
    embedding: str | None = None,
    head: str | None = None,
    adapter_dtype: Literal["fp32", "fp16", "int8"] | None = None,
    compact_tokenizer: bool = False,
    cache: str | Path | None = None,
    download: bool = False,
    source: str | None = None,
    force: bool = False,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> Bundle:
    """Write the bundle `out` of `model` with `adapters` for `backend`, and return it.

    `model` is a checkpoint directory, a hub id (fetched only with `download`), or a handle such as
    `lora_core.models.module.ModuleModel` around your own `nn.Module`; `source` names the model source that opens it
    (None: the first that knows it, generic ones last). `options` are fields of the backend's options class by name.
    `plan`, `max_rank` and `targets` say which slots the bundle has: those its adapters need, and more for adapters to
    come. `group_size`, `embedding` and `head` ("BITS,GROUP" or "float") adjust the policy;
    `adapter_dtype` is the type that adapters are stored in, where the backend has a choice (None: its own). With
    `compact_tokenizer` the base's tokenizer.json is written without the white space that means nothing. `cache` is a
    directory of lowered templates to reuse and fill (None: no cache). An existing `out` is refused unless `force`
    replaces it.

    Raises `UsageError`, `ModelError`, `AdapterError`, `PolicyError`, `UnsupportedError`, `PluginError` or
    `StorageError`, each with all problems found, before the long work wherever possible; `out` is then untouched.
    """
    from lora_core.pipeline.export import export as run
    from lora_core.pipeline.request import ExportRequest

    request = ExportRequest(
        model=model,
        adapters=adapters,
        backend=backend,
        policy=policy,
        options=options or {},
        plan=plan,
        max_rank=max_rank,
        targets=targets,
        group_size=group_size,
        embedding=embedding,
        head=head,
        adapter_dtype=adapter_dtype,
        compact_tokenizer=compact_tokenizer,
        cache=None if cache is None else Path(cache),
        download=download,
        source=source,
    )
    return run(request, Path(out), force=force, emit=emit, hub=_hub(hub))


def add(
    bundle: str | Path | Bundle,
    adapters: Adapters,
    *,
    jobs: int = 1,
    trust: Sequence[str | Path] = (),
    model: str | Path | ModelHandle | None = None,
    source: str | None = None,
    download: bool = False,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> Bundle:
    """Link `adapters` into `bundle` and return the new bundle; needs neither the base weights nor torch.

    `jobs` processes share the work when there are many adapters; with `download` adapters given by hub ids that are not
    in the local cache are fetched. `model` is the base that the bundle was exported from, for adapters that are told
    against its weights: DoRA, trained biases, whole modules; `source` is that of the export. `trust` are files of
    Ed25519 public keys (PEM): every adapter must then be a package that one of them signed. Raises `UsageError` (name,
    key), `AdapterError` (an adapter that is wrong, outside the slot plan, or not trusted; a package of another
    bundle), `BundleError` or `UnsupportedError`; the bundle is then unchanged.
    """
    from lora_core.pipeline.add import add as run

    return run(
        _path(bundle),
        adapters,
        jobs=jobs,
        trust=[Path(each) for each in trust],
        model=model,
        source=source,
        download=download,
        emit=emit,
        hub=_hub(hub),
    )


def remove(
    bundle: str | Path | Bundle, names: Sequence[str], *, emit: Emit = ignore, hub: PluginHub | None = None
) -> Bundle:
    """Remove the adapters `names` from `bundle` and return the new bundle; raises `UsageError` or `BundleError`."""
    from lora_core.pipeline.remove import remove as run

    return run(_path(bundle), names, emit=emit, hub=_hub(hub))


def convert(
    adapter: str | Path,
    out: str | Path,
    *,
    model: str | Path | ModelHandle | None = None,
    download: bool = False,
    force: bool = False,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> Adapter:
    """Write `adapter`, of any format that is read, as the PEFT directory `out`, and return it as it was read.

    `model` is the base it is for; without it the adapter is read as it is, which formats can that tell the layers they
    are for (GGUF of Llama cannot: its rows depend on the base's heads). `adapter` can be a hub id in the local cache,
    fetched only with `download`. An existing `out` is refused unless `force` replaces it. Raises `AdapterError`,
    `UsageError`, `UnsupportedError` for updates that are not LoRA, or `StorageError`; `out` is then untouched.
    """
    from lora_core.pipeline.convert import convert as run

    return run(Path(adapter), Path(out), model=model, download=download, force=force, emit=emit, hub=_hub(hub))


def fit_adapter(
    bundle: str | Path | Bundle,
    adapter: AdapterReference | str | Path,
    model: str | Path | ModelHandle,
    *,
    out: str | Path,
    calibration: str | Path | None = None,
    rank: int | None = None,
    source: str | None = None,
    download: bool = False,
    force: bool = False,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> FittedAdapter:
    """Choose A and B of `adapter` anew, so that they also make up for what rounding lost in the base of `bundle`, and
    write them as the PEFT directory `out`, which `add` and `export` take for this foundation alone.

    `adapter` is a directory, or a reference (which can have a strength, or be a composite). `model` is the base that
    the bundle was exported from. On prompts of `calibration` (as the export option of that name takes them; None: a
    built-in set), each slot's A and B become those of their rank, or of `rank`, by which the rounded layer's outputs
    are nearest to those of the full layer with the adapter. `out` also holds what was fitted, as `original`, which
    `verify` compares with. An existing `out` is refused unless `force` replaces it.

    Raises `UsageError`, `AdapterError`, `ModelError` (another base, or one of a family that cannot be run for it),
    `PolicyError` for a base that is not rounded, `UnsupportedError` (a backend that does not tell how it rounds,
    updates that are not LoRA), `InputError` for prompts that cannot be read, or `StorageError`; `out` is then
    untouched.
    """
    from lora_core.adapters.names import safe_name
    from lora_core.adapters.reference import AdapterReference
    from lora_core.pipeline.fit_adapter import fit_adapter as run

    if not isinstance(adapter, AdapterReference):
        adapter = AdapterReference(name=safe_name(Path(adapter).resolve().stem), directory=Path(adapter))
    return run(
        _path(bundle),
        adapter,
        model,
        Path(out),
        calibration=None if calibration is None else Path(calibration),
        rank=rank,
        source=source,
        download=download,
        force=force,
        emit=emit,
        hub=_hub(hub),
    )


def catalogue(
    source: str | Path,
    *,
    bundles: Sequence[str | Path | Bundle] = (),
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> Iterator[CatalogueEntry]:
    """Yield every adapter and package below `source`: what it is, and which template of each of `bundles` it fits.

    What cannot be read, or does not fit, is told in its entry and does not stop the rest. Raises `UsageError` if there
    is none, and as `open` for a bundle that cannot be read.
    """
    from lora_core.pipeline.catalogue import catalogue as run

    return run(Path(source), [_path(each) for each in bundles], emit=emit, hub=_hub(hub))


def pack(
    bundle: str | Path | Bundle,
    adapter: str | AdapterReference,
    *,
    out: str | Path | None = None,
    sign: str | Path | None = None,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> PackedAdapter:
    """Write one adapter as a package: a file that `add` or a device links into this bundle and no other.

    `adapter` is the name of one of the bundle, whose matrices are read back from it (`UnsupportedError` where the
    backend cannot), or a reference to one that is read anew. `out` is the file (None: `NAME.lora` in the working
    directory), replaced if it is there. `sign` is an Ed25519 private key (PEM). The same adapter and key give the same
    bytes. Raises `UsageError`, `AdapterError`, `UnsupportedError` for updates that the backend cannot carry,
    `BundleError` or `StorageError`.
    """
    from lora_core.pipeline.packing import pack as run

    target, key = (None if each is None else Path(each) for each in (out, sign))
    return run(_path(bundle), adapter, target, key=key, emit=emit, hub=_hub(hub))


def pack_all(
    source: str | Path,
    bundle: str | Path | Bundle,
    *,
    out: str | Path,
    sign: str | Path | None = None,
    executor: str = "local",
    processes: int | None = None,
    address: str | None = None,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> FleetReport:
    """Write a package for `bundle` of every adapter below `source` to `out/packages`, and return what came of each.

    `source` is a directory, or a URL that fsspec reads. `out` is new, empty or of an earlier run, also one that was
    killed: what that has done, and nothing has changed since, is left alone. `executor` says who works: `local` or
    one that a plugin offers; `processes` how many at a time (None: as many as there are cores), `address` on which
    cluster. An adapter that cannot be packed is in the report and stops no other. Raises `UsageError`, `BundleError`,
    `UnsupportedError`, `PluginError` or `StorageError`.
    """
    from lora_core.executor import ExecutorSettings
    from lora_core.fleet.packing_all import pack_all as run

    settings = ExecutorSettings(processes=processes, address=address)
    key = None if sign is None else Path(sign)
    return run(
        str(source),
        _path(bundle),
        Path(out),
        sign=key,
        executor=executor,
        settings=settings,
        emit=emit,
        hub=_hub(hub),
    )


def ship(
    bundle: str | Path | Bundle,
    out: str | Path,
    *,
    sign: str | Path | None = None,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> Shipment:
    """Split `bundle` into `out/app`, the bundle without adapters, and `out/packages`, one package for each.

    `out` is new or empty; `bundle` is left as it is. Raises as `pack`.
    """
    from lora_core.pipeline.shipping import ship as run

    key = None if sign is None else Path(sign)
    return run(_path(bundle), Path(out), key=key, emit=emit, hub=_hub(hub))


def inspect(bundle: str | Path | Bundle, *, emit: Emit = ignore, hub: PluginHub | None = None) -> InspectReport:
    """Return files, methods, adapters and the sharing report of `bundle`, from the bytes on disk."""
    from lora_core.pipeline.inspect import inspect as run

    return run(_path(bundle), emit=emit, hub=_hub(hub))


def open(
    bundle: str | Path | Bundle, *, options: Mapping[str, Any] | None = None, hub: PluginHub | None = None
) -> Session:
    """Open `bundle` on its backend's runtime; `options` are fields of the backend's session options by name
    (`BackendSpec.session_options`, those that `lora-core run --help` lists).

    Raises `UsageError` for an option that the backend does not have, `UnsupportedError` where this machine cannot run
    the bundle.
    """
    from lora_core.pipeline.opening import open_session

    return open_session(_path(bundle), options or {}, hub=_hub(hub))


def verify(
    bundle: str | Path | Bundle,
    model: str | Path | ModelHandle,
    *,
    adapters: Adapters = (),
    prompts: Sequence[str] = (),
    tokens: int | None = None,
    reference: Literal["auto", "transformers", "eager"] = "auto",
    inputs: Sequence[Sequence[Any]] = (),
    options: Mapping[str, Any] | None = None,
    source: str | None = None,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> VerifyReport:
    """Compare every method of `bundle` with a reference made from `model` and `adapters`; check hashes and sharing.

    `adapters` are those of the bundle as they were given to it; one that is left out has no reference. Logits are
    compared for `tokens` steps (default 16) after each of `prompts` (default: a few texts). `reference` is transformers
    with peft, or our own eager module; `auto` takes the first where it is installed. `inputs` are for a module of your
    own that takes no tokens: the positional inputs of each call that is compared. `options` are those of `open`,
    `source` is that of the export.

    Returns the report whether or not everything holds: see its `passed` and `unchecked`. Raises as `open` and `export`
    do for a bundle, model or adapter that cannot be read.
    """
    from lora_core.pipeline.verify import VerifySettings
    from lora_core.pipeline.verify import verify as run

    settings = VerifySettings(
        prompts=tuple(prompts), tokens=tokens, reference=reference, inputs=tuple(inputs), session=options or {}
    )
    return run(_path(bundle), model, adapters=adapters, settings=settings, source=source, emit=emit, hub=_hub(hub))


def bench(
    bundle: str | Path | Bundle,
    *,
    adapters: Sequence[str] | None = None,
    settings: BenchSettings | None = None,
    inputs: Sequence[Sequence[Any]] = (),
    options: Mapping[str, Any] | None = None,
    emit: Emit = ignore,
    hub: PluginHub | None = None,
) -> BenchReport:
    """Measure load times, speed of every method, memory and changes of adapter of `bundle`.

    `adapters` are names (None: all of the bundle); `inputs` are the positional inputs of calls, for a module of your
    own that takes no tokens; `options` are the runtime's, as for `open`. Memory is that of this
    process: measure in one that has done nothing else. Raises as `open` does, and `UsageError` for unknown names.
    """
    from lora_core.bundle.store import open_bundle
    from lora_core.runtime.bench import bench as run
    from lora_core.runtime.selection import require_selectable

    hub = _hub(hub)
    require_selectable(adapters or (), hub.spec_of(open_bundle(_path(bundle))))
    with open(bundle, options=options, hub=hub) as session:
        names = [adapter.name for adapter in session.bundle.manifest.adapters]
        return run(session, names if adapters is None else adapters, settings, inputs=inputs, emit=emit)


def _hub(hub: PluginHub | None) -> PluginHub:
    if hub is not None:
        return hub
    from lora_core.hub import PluginHub

    return PluginHub()


def _path(bundle: str | Path | Bundle) -> Path:
    return Path(bundle) if isinstance(bundle, str | Path) else bundle.path
