"""Parts of slots that lie inside of an adapter's program: rows of an embedding, which kernels read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.bundle.bundle import Bundle
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.files.program_root import NOT_WHOLE, ProgramRoot, damaged
from lora_core_xnnpack.slot_tensors import TensorRelocation
from lora_core_xnnpack.split.linking import template_files
from lora_core_xnnpack.split.relocations import SplitTemplate

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True, eq=False)
class TensorInside:
    """A part of a slot in a program file: where its bytes begin, and its values, mapped from there."""

    tensor: TensorRelocation
    offset: int
    values: npt.NDArray[np.float32]


def inside(bundle: Bundle, name: str, plan: int) -> Iterator[TensorInside]:
    """Yield what lies inside the program of adapter `name` on the slot plan with the index `plan`.

    Raises `BundleError` for a program or a template that is damaged.
    """
    if not any(part.table for slot in bundle.manifest.plans[plan].slots for part in slot.parts):
        return
    program, table_file = map(bundle.file, template_files(plan))
    template = SplitTemplate.read(program, table_file, bundle.manifest.foundation)
    path = bundle.file(f"{name}.pte")
    data = mapped(path)
    try:
        spans = ProgramRoot.read(data).spans
        for tensor in template.table.tensors:
            if tensor.inside:
                (site,) = tensor.sites
                offset = spans[template.kept.index(site.payload)][0] + site.offset
                values = np.frombuffer(data, "<f4", count=tensor.size // 4, offset=offset).reshape(tensor.shape)
                yield TensorInside(tensor=tensor, offset=offset, values=values)
    except NOT_WHOLE as error:
        raise damaged(path, error) from error
