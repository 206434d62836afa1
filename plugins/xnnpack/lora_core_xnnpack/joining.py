"""Join a program and its adapter's data into one program that carries the data itself."""

from __future__ import annotations


def join_program(program: bytes, data: bytes) -> bytes:
    """Return `program` (a `.pte`) with the named data of `data` (a `.ptd`) inside.

    ExecuTorch's Python API takes one `.ptd` for a program, which is the foundation's; the adapter's data therefore has to
    come with the program.
    """
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    payload = FlatTensorSerializer().deserialize(data)
    file = deserialize_pte_binary(program)
    file.named_data = NamedDataStoreOutput(
        buffers=list(payload.buffers), pte_data=dict(payload.named_data), external_data={}
    )
    return bytes(serialize_pte_binary(file, extract_delegate_segments=True))
