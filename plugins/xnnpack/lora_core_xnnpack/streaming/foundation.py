"""Write the foundation of a base tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_core.events import Emit, Noted, StageAdvanced, stage
from lora_core_xnnpack.cache.forms import Form, stored
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.files.data_writer import DataWriter, PlannedBlob
from lora_core_xnnpack.files.marks import FOUNDATION_MARK, MARK_LENGTH, mark_of
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.streaming.base import StreamedBase

WRITE_STAGE = "Write the foundation"


def fill_foundation(
    tensors: Sequence[BaseTensor], base: StreamedBase, path: Path, emit: Emit
) -> tuple[NamedBlob, ...] | None:
    """Do as `write_foundation`; None, which is noted, and no file if programs of other weights are not those of `base`.

    ExecuTorch 1.5.1 (`_emitter.py`) numbers what kernels read by name, and gives equal tensors one number.
    """
    blobs = write_foundation(tensors, base, path, emit)
    named: dict[int, dict[Form, str]] = {}
    for tensor, blob in zip(tensors, blobs, strict=True):
        if tensor.name:
            named.setdefault(blob.offset, {})[base.same(tensor.form)] = tensor.name
    equal = [names for names in named.values() if len(names) > 1]
    if not equal:
        return blobs
    path.unlink()
    texts = "; ".join(" and ".join(names.values()) for names in equal[:3])
    emit(Noted(message=f"The base is held whole, because weights of it are equal by chance: {texts}"))
    return None


def write_foundation(
    tensors: Sequence[BaseTensor], base: StreamedBase, path: Path, emit: Emit
) -> tuple[NamedBlob, ...]:
    """Write `tensors` of `base` and their mark as the new data file at `path`; return what is stored for each of them.

    Each tensor of the base is read once for all that is made of it, and no more than some rows are in memory.
    """
    segments: dict[Form, int] = {}
    sizes: list[int] = []
    blobs = []
    for tensor in tensors:
        form = base.same(tensor.form)
        if form not in segments:
            segments[form] = len(sizes)
            sizes.append(tensor.size)
        blobs.append(PlannedBlob(segment=segments[form], name=tensor.name, prefix=tensor.prefix, layout=tensor.layout))
    readings: dict[str, list[Form]] = {}
    for form in segments:
        readings.setdefault(base.reading(form), []).append(form)
    done, total = 0, sum(sizes)
    mark = PlannedBlob(segment=len(sizes), name=FOUNDATION_MARK, prefix="", layout=None)
    with stage(emit, WRITE_STAGE), path.open("x+b") as file:
        writer = DataWriter(file, [*blobs, mark], [*sizes, MARK_LENGTH])
        for reading, wanted in readings.items():
            for block in base.blocks(reading):
                for form in wanted:
                    data = stored(block[form.path], form)
                    writer.write(segments[form], data)
                    done += len(data)
                emit(StageAdvanced(stage=WRITE_STAGE, done=done, total=total, unit="bytes"))
        writer.write(mark.segment, mark_of(writer.digests()).encode("ascii"))
        return writer.finish()[:-1]
