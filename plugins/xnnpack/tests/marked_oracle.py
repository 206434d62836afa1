"""What ExecuTorch's own serializer writes of a lowering, with a mark and names of adapters among its named data."""

from __future__ import annotations

from executorch.exir import ExecutorchBackendConfig
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize._serialize import serialize_for_executorch
from executorch.exir._serialize.data_serializer import DataEntry
from lora_core_xnnpack.files.marks import FOUNDATION_MARK, PROGRAM_ADAPTERS, PROGRAM_MARK
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, Lowered


def marked(lowered: Lowered, mark: str, *adapters: str) -> tuple[bytes, bytes]:
    """Return the program and the foundation of `lowered` with `mark` in both, and `adapters` in the program."""
    manager = lowered.manager
    known = manager._named_data
    entry, names = (
        DataEntry(buffer_index=len(known.buffers) + index, alignment=1, tensor_layout=None) for index in range(2)
    )
    external = {tag: dict(entries) for tag, entries in known.external_data.items()}
    external[FOUNDATION_TAG] = {**external.get(FOUNDATION_TAG, {}), FOUNDATION_MARK: entry}
    named = NamedDataStoreOutput(
        buffers=[*known.buffers, mark.encode("ascii"), "\n".join(adapters).encode("ascii")],
        pte_data={**known.pte_data, PROGRAM_MARK: entry, **({PROGRAM_ADAPTERS: names} if adapters else {})},
        external_data=external,
    )
    config = ExecutorchBackendConfig(extract_delegate_segments=True)
    program, data = serialize_for_executorch(manager._emitter_output, config, manager._data_serializer, named)
    return bytes(program), bytes(data[FOUNDATION_TAG])
