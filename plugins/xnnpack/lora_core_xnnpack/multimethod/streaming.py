"""One program of several methods lowered for a job, without holding the base where that can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Emit
from lora_core.models.base import BaseModel
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import mark_file
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.lowering.base import load_base
from lora_core_xnnpack.multimethod.lowering import LoweredTogether
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.streaming.weightless import Lowering, Missing, streamed

if TYPE_CHECKING:
    from lora_core_xnnpack.stamping.shallow import LayeredBase

    Stamp = Callable[[LayeredBase, Sequence[SlotPlan], Emit], WeightlessTogether]

Lower = Callable[[BaseModel, Path], LoweredTogether]


def lowered_together(job: ExportJob, out: Path, emit: Emit, *, stamp: Stamp, lower: Lower) -> LoweredTogether:
    """Return the program of `job`, and write the foundation file into `out`.

    `stamp` derives it from a few layers of the base; `lower` lowers a base whole, writing its foundation file into a
    directory.
    """

    def stamped(layers: LayeredBase, missing: Missing[WeightlessTogether], emit: Emit) -> WeightlessTogether:
        return stamp(layers, missing.plans, emit)

    def whole(model: BaseModel, work: Path, _: Missing[WeightlessTogether]) -> WeightlessTogether:
        lowered = lower(model, work)
        data = mapped(work / FOUNDATION_FILE)
        return WeightlessTogether.strip(model.module, lowered, data, stored_blobs(data, work / FOUNDATION_FILE))

    written = streamed(job, WeightlessTogether, Lowering(stamp=stamped, whole=whole), out, emit)
    if written is not None:
        program, blobs = written
        return program.fill(blobs)
    made = lower(load_base(job, emit), out)
    mark_file(out / FOUNDATION_FILE)
    return made
