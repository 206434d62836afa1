"""Where the conformance kit works: exports of the tiny model that checks share, and sessions on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

import lora_core
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.capability import Capability
from lora_core.errors import UnsupportedError
from lora_core.events import Emit, Event, ignore
from lora_core.hub import PluginHub
from lora_core.specs import BackendSpec
from lora_core.testing.materials import ADAPTERS, RANK, Materials
from lora_core.testing.noise import Listening, Printed
from lora_core.testing.verdict import Broken, Unchecked

if TYPE_CHECKING:
    from lora_core.runtime.session import Session
    from lora_core.sharing.blobs import Blob

T = TypeVar("T")


@attrs.define(kw_only=True)
class Workshop:
    """Makes what checks need, each thing once. `options` are the backend's, by field name.

    Room for all of the kit's adapters is always reserved, so that bundles differ in their adapters and nothing else.
    """

    backend_name: str
    hub: PluginHub
    root: Path
    materials: Materials
    policies: tuple[str, ...]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    cache: Path | None = None
    emit: Emit = ignore
    noise: dict[str, list[Printed]] = attrs.field(factory=dict, init=False)
    """What was printed, by what was done, each time that it was."""
    _made: dict[tuple[object, ...], Any] = attrs.field(factory=dict, init=False)
    _copies: int = attrs.field(default=0, init=False)
    _listening: Listening | None = attrs.field(default=None, init=False)

    @property
    def backend(self) -> Backend:
        """The backend under test."""
        return self.hub.backend(self.backend_name)

    @property
    def spec(self) -> BackendSpec:
        """Its descriptor."""
        return self.hub.backends[self.backend_name]

    @property
    def links(self) -> bool:
        """True if the backend declares that it can link."""
        return Capability.LINK in self.spec.capabilities

    @property
    def runs(self) -> bool:
        """True if the backend declares that it can run or evaluate a bundle."""
        return bool({Capability.RUN, Capability.EVALUATE} & self.spec.capabilities)

    @property
    def context_len(self) -> int | None:
        """The context length that exports ask for; None if the backend has no option of a usual name for it."""
        asked = self.options.get("max_context_len", self.options.get("context_len"))
        return asked if isinstance(asked, int) else None

    def bare(self, policy: str = "") -> Bundle:
        """Return the bundle of the tiny model without adapters, and with room for all of the kit's."""
        return self.once("bare", policy or self.policies[0], make=lambda: self.export((), policy=policy))

    def full(self, policy: str = "") -> Bundle:
        """Return the bundle with all of the kit's adapters."""
        return self.once("full", policy or self.policies[0], make=lambda: self.export(ADAPTERS, policy=policy))

    def full_again(self, policy: str = "") -> Bundle:
        """Return the same as `full`, from a copy of the model in another place, the adapters in another order."""
        model = self.materials.model_elsewhere()
        return self.once(
            "again",
            policy or self.policies[0],
            make=lambda: self.export(ADAPTERS[::-1], policy=policy, model=model, cache=None),
        )

    def selecting(self, policy: str = "") -> Bundle:
        """Return the bundle with all of the kit's adapters that takes selections: `full`, unless an option says so."""
        chosen = self.spec.selection_options
        if not chosen:
            return self.full(policy)
        options = {**self.options, **chosen}
        policy = policy or self.policies[0]
        return self.once("selecting", policy, make=lambda: self.export(ADAPTERS, policy=policy, options=options))

    def stranger(self) -> Bundle:
        """Return the bundle of another model of the same shape, with all of the kit's adapters."""
        return self.once("stranger", make=lambda: self.export(ADAPTERS, model=self.materials.model(seed=1)))

    def export(
        self, names: Sequence[str], *, policy: Any = "", model: Path | None = None, emit: Emit = ignore, **more: Any
    ) -> Bundle:
        """Export the kit's adapters `names` with `model` (the tiny one); `more` is for `lora_core.export`."""
        self.materials.hashes  # noqa: B018 - what inputs were before anybody could change them
        room = {"max_rank": RANK, "targets": "all-linear"} if self.spec.slot_plans else {}

        def both(event: Event) -> None:
            self.tell(event)
            emit(event)

        with self.heard("export"):
            return lora_core.export(
                model or self.materials.model(),
                adapters=[self.materials.adapter(name) for name in names],
                backend=self.backend_name,
                policy=policy or self.policies[0],
                out=self.place(),
                emit=both,
                hub=self.hub,
                **{"options": self.options, "cache": self.cache, **room, **more},
            )

    def add(self, bundle: Path, names: Sequence[str]) -> Bundle:
        """Add the kit's adapters `names` to a bundle of the workshop's."""
        with self.heard("add"):
            references = [self.materials.adapter(name) for name in names]
            return lora_core.add(bundle, references, emit=self.tell, hub=self.hub)

    def blobs(self, bundle: Bundle) -> list[Blob]:
        """Return the blobs that the backend reports of one of the kit's bundles."""
        return self.once("blobs", bundle.path, make=lambda: list(self.backend.sharing.blobs(bundle)))

    @contextmanager
    def opened(self, bundle: Bundle) -> Iterator[Session]:
        """Open `bundle` on its runtime for as long as the block runs.

        Raises `Broken` if the backend says that this machine cannot, while its diagnosis says that it works.
        """
        try:
            with self.heard("open"):
                session = lora_core.open(bundle, hub=self.hub)
        except UnsupportedError as error:
            if self.backend.diagnose().works:
                raise Broken(f"`diagnose` says that it works here, and `open` that it does not: {error}") from error
            raise Unchecked(str(error)) from error
        with session:
            yield session

    def copy(self, bundle: Bundle) -> Path:
        """Return the path of a copy of `bundle` that a check may change."""
        return Path(shutil.copytree(bundle.path, self.place()))

    def place(self) -> Path:
        """Return a path that nothing uses yet, below a directory that is there."""
        self._copies += 1
        parent = self.root / str(self._copies)
        parent.mkdir(parents=True)
        return parent / "bundle"

    @contextmanager
    def heard(self, activity: str) -> Iterator[None]:
        """Keep what the block prints in `noise`."""
        printed = Printed()
        self.noise.setdefault(activity, []).append(printed)
        with Listening(printed) as self._listening:
            try:
                yield
            finally:
                self._listening = None

    def tell(self, event: Event) -> None:
        """Hand `event` on to `emit`, which may print: that is no noise."""
        if self._listening is None:
            self.emit(event)
            return
        with self._listening.paused():
            self.emit(event)

    def once(self, *key: object, make: Callable[[], T]) -> T:
        """Return what `make` gives, made once for `key`. A failure is kept too: nobody waits for it twice."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except Exception as error:
                self._made[key] = error
                raise
        found = self._made[key]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]
