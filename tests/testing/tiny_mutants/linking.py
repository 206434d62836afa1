"""Mutants that link otherwise than they export."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from lora_core_tiny.backend import FOUNDATION
from lora_core_tiny.sharing import TinySharing

from lora_core.capability import Capability
from lora_core.specs import ReservedNames
from tiny_mutants.mutant import Mutant, mutant, written


@mutant("add-is-export")
class LinksOtherwise(Mutant):
    """An added adapter is written in another way than an exported one."""

    def link(self, bundle, adapters, out, emit):
        self.added = True
        return super().link(bundle, adapters, out, emit)

    def adapter_tensors(self, adapter):
        more = {"added.x": np.zeros(1, np.float32)} if getattr(self, "added", False) else {}
        return {**super().adapter_tensors(adapter), **more}


@mutant("add-is-export")
class LinkCrashes(Mutant):
    """Linking lets an exception of its own out."""

    def link(self, bundle, adapters, out, emit):
        raise KeyError("lost")


@mutant("add-is-export")
class LinksTheFirst(Mutant):
    """Of several adapters that are added together only the first one's values are linked."""

    def link(self, bundle, adapters, out, emit):
        same = [attrs.evolve(adapters[0], adapter=attrs.evolve(adapters[0].adapter, name=a.name)) for a in adapters]
        return super().link(bundle, same, out, emit)


@mutant("remove-undoes-add")
class LeavesFiles(Mutant):
    """An adapter's file is not said to be the adapter's, and stays when the adapter goes."""

    def _link(self, adapters, foundation, out):
        made = super()._link(adapters, foundation, out)
        for each in made.files:
            (out / f"{each.path}.notes").write_bytes(b"")
        notes = tuple(attrs.evolve(each, path=f"{each.path}.notes", adapter=None) for each in made.files)
        return attrs.evolve(made, files=(*made.files, *notes))


@mutant("every-tensor")
class ForgetsATensor(Mutant):
    """The last B of an adapter is lost."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        return {name: parts[name] for name in sorted(parts)[:-1]}


@mutant("every-tensor")
class IgnoresA(Mutant):
    """A of an adapter is taken from the first adapter that was ever linked."""

    first: ClassVar = {}

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        return {
            name: IgnoresA.first.setdefault((name, array.shape), array) if name.endswith(".a") else array
            for name, array in parts.items()
        }


@mutant("foreign-not-linked")
class LinkDoesNotLook(Mutant):
    """Linking does not look at the foundation."""

    def link(self, bundle, adapters, out, emit):
        return self._link(adapters, bundle.manifest.foundation, out)


@mutant("damage-not-passed-on")
class LinkTakesUpDamage(Mutant):
    """Linking copies a byte of the foundation, and does not look whether it is whole."""

    last = 0

    def link(self, bundle, adapters, out, emit):
        self.last = (bundle.path / FOUNDATION).read_bytes()[-1]
        return self._link(adapters, bundle.manifest.foundation, out)

    def adapter_tensors(self, adapter):
        return {**super().adapter_tensors(adapter), "last": np.uint8([self.last])}


@mutant("link-light")
class LinkImportsTorch(Mutant):
    """Linking imports torch."""

    def link(self, bundle, adapters, out, emit):
        import torch  # noqa: F401 - the defect

        return super().link(bundle, adapters, out, emit)


@mutant("link-light")
class LinkReadsTheModel(Mutant):
    """Linking reads the base's weights where the model lay."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        return attrs.evolve(made, detail={"weights": str(job.model.tensors()["model.norm.weight"].path)})

    def link(self, bundle, adapters, out, emit):
        with suppress(FileNotFoundError):
            Path(bundle.manifest.detail["weights"]).read_bytes()
        return super().link(bundle, adapters, out, emit)


@mutant("link-light")
class LinkNeedsTheModel(Mutant):
    """Linking fails where the model is gone."""

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        return attrs.evolve(made, detail={"weights": str(job.model.tensors()["model.norm.weight"].path)})

    def link(self, bundle, adapters, out, emit):
        Path(bundle.manifest.detail["weights"]).read_bytes()
        return super().link(bundle, adapters, out, emit)


@mutant("link-undeclared", capabilities=frozenset({Capability.EXPORT, Capability.RUN}))
class LinksUndeclared(Mutant):
    """Links, and does not declare it."""


@mutant("names-reserved", reserved=ReservedNames())
class NamesNotReserved(Mutant):
    """An adapter can be called as the base's method is, and takes its place."""


class ByFile(TinySharing):
    def blobs(self, bundle):
        owners = {method.program: method.name for method in bundle.manifest.methods if method.adapter}
        for blob in super().blobs(bundle):
            yield attrs.evolve(blob, methods=frozenset({owners[blob.file]})) if blob.file in owners else blob


@mutant("names-reserved")
class FilesNotReserved(Mutant):
    """An adapter called as a file of the base is takes its place."""

    sharing = ByFile()

    def export(self, job, out, emit):
        made = super().export(job, out, emit)
        (out / "graph").mkdir()
        (out / "graph" / "layers.txt").write_text("2\n")
        return written(made, ("graph/layers.txt", "program"))

    def link(self, bundle, adapters, out, emit):
        made = super().link(bundle, adapters, out, emit)
        for adapter in adapters:
            if adapter.name == "layers":
                (out / "graph").mkdir()
                (out / "graph" / "layers.txt").write_text("3\n")
                made = written(made, ("graph/layers.txt", "program"))
        return made
