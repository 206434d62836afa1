"""The interface that a backend plugin implements."""

# ruff: noqa: ARG002 - the defaults of an interface use none of their arguments

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.bundle import Bundle, Method
from lora_core.errors import Problem, UnsupportedError
from lora_core.events import Emit, Estimated
from lora_core.layers import LayerInfo
from lora_core.models.base import ModelHandle
from lora_core.quant.policy import QuantPolicy
from lora_core.sharing.blobs import WeightSharing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.runtime.session import Session

RoundWeight: TypeAlias = "Callable[[LayerInfo, npt.NDArray[np.float32]], npt.NDArray[np.float32]]"
"""Given a linear layer and its weight (out_features, in_features): the weight that programs compute with."""


@attrs.frozen(kw_only=True)
class Diagnosis:
    """Whether a backend can work on this machine, and facts worth showing (versions, libraries)."""

    problems: tuple[Problem, ...] = ()
    facts: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def works(self) -> bool:
        """True when nothing stands in the way."""
        return not self.problems


@attrs.frozen(kw_only=True)
class ExportJob:
    """Everything one export needs; `options` is an instance of the backend's options class.

    One template is lowered for each of `plans`: one plan is the union of all adapters, several are the distinct shapes
    of `plan="per-shape"`; a plan may have slots at ranks no adapter needs yet. With no adapters and no reserved slots
    there are no plans and the bundle has no template; a backend whose descriptor says `slot_plans=False` never gets
    any. `adapters` are in the order of their names, each on the plan that it uses.
    `cache` is a directory where the backend may keep lowered templates for later exports (None: do not).
    """

    model: ModelHandle
    adapters: tuple[PlacedAdapter, ...]
    plans: tuple[SlotPlan, ...]
    policy: QuantPolicy
    options: Any
    cache: Path | None = None


@attrs.frozen(kw_only=True)
class WrittenFile:
    """A file that a backend wrote; core measures it. `path` is relative to the bundle with forward slashes.

    `role` and `adapter` are those of `lora_core.bundle.bundle.Artifact`. `sha256` may be given by who hashed the bytes
    anyway, so that a large file is not read again.
    """

    path: str
    role: str
    adapter: str | None = None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Artifacts:
    """What an export or a link wrote under `out`, for the manifest.

    `foundation` is the fingerprint of the stored base. Every adapter of the job has at least one of `methods`. For a
    link, `files` and `methods` are those that are new or replaced (same path or name), and `detail` updates that of the
    manifest key by key. `adapter_details` is plain data that the backend wants to find again, by adapter. `dropped`, of
    an unlink, are paths of files that belonged to no single adapter and that nothing needs any more.
    """

    foundation: str
    files: tuple[WrittenFile, ...]
    methods: tuple[Method, ...]
    versions: Mapping[str, str] = attrs.field(factory=dict)
    detail: Mapping[str, Any] = attrs.field(factory=dict)
    adapter_details: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    dropped: tuple[str, ...] = ()


class Backend(ABC):
    """One backend. Instances are made without arguments, cheaply, and import heavy modules in method bodies."""

    @abstractmethod
    def diagnose(self) -> Diagnosis:
        """Say whether the backend can work here. Cheap; never raises."""

    @abstractmethod
    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return every problem of `job` at once, before any heavy work."""

    def estimate(self, job: ExportJob) -> Estimated | None:
        """Return what exporting `job` will take, from configuration alone; None if the backend cannot tell."""
        return None

    @abstractmethod
    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Write all artifacts of `job` into the empty directory `out`."""

    @property
    @abstractmethod
    def sharing(self) -> WeightSharing:
        """How this backend stores the base once."""

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        """Write what `adapters` add to `bundle` into the empty directory `out`, without the base weights.

        Each comes on the plan that it uses (`index` of `bundle.manifest.plans`), which it fits.
        """
        raise UnsupportedError(f"Backend {bundle.manifest.backend!r} cannot add adapters to a bundle.")

    def links_independently(self, bundle: Bundle) -> bool:
        """Say whether linking adapters together writes the same files as linking each alone.

        If so, `add` links thousands of adapters in batches of bounded memory, and in several processes on request.
        False where adapters share a file that a link rewrites (one program for all adapters).
        """
        return False

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:
        """Write files that must change when adapters go (None: only files of their own)."""
        return None

    def template_files(self, bundle: Bundle, plan: int) -> Sequence[str]:
        """Return the paths of the files that an adapter on the slot plan with this index is linked into.

        Adapter packages name them by hash. Default: every file with the role `template` or `relocations`.
        """
        roles = ("template", "relocations")
        return [artifact.path for artifact in bundle.manifest.base_artifacts if artifact.role in roles]

    def stored_values(self, bundle: Bundle, name: str) -> Mapping[str, Values]:
        """Return the values of every slot of the plan of the adapter `name` of `bundle`, by module, as they are stored.

        Linking them again must give the same bytes. Only for backends that store them exactly; raises
        `UnsupportedError` by default, and adapters are then packed from where they were read.
        """
        raise UnsupportedError(
            f"Backend {bundle.manifest.backend!r} does not give the matrices of adapter {name!r} back.",
            remedy=f"Pack it from its directory: {name}=DIR.",
        )

    def rounding(self, job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
        """Return what a linear layer's weight becomes in the programs of `job`, whose adapters do not matter, as a
        function of the layer: adapters are fitted to what rounding lost of it (`lora-core fit-adapter`).

        It is called for layers that the policy quantizes. `work` is an empty directory for as long as it is in use,
        where the base may be rounded as a whole first. Raises `UnsupportedError` by default.
        """
        raise UnsupportedError(
            "Backend does not tell what it makes of a base's weights, so nothing can be fitted to it."
        )

    def open(self, bundle: Bundle, options: Any) -> Session:
        """Open `bundle` on a runtime; raises `UnsupportedError` where this machine cannot, `BundleError` if the stored
        base is not the one that the bundle was made with.

        `options` is an instance of the class that the descriptor names as `session_options`, None if it names none.
        """
        raise UnsupportedError(f"Backend {bundle.manifest.backend!r} cannot run programs on this machine.")
