"""Which stored data the methods of one program read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lora_core.pte import Buffer
from lora_core_xnnpack.files.named_blobs import content_keys
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.files.program_root import NOT_WHOLE, damaged
from lora_core_xnnpack.files.schema import TENSOR_NAME, TENSOR_NAME_FIELD
from lora_core_xnnpack.files.tables import Vector


def method_keys(program: Buffer, path: Path) -> Mapping[str, set[bytes]]:
    """Return for each method of a program the keys of stored data that its delegates and its tensors name.

    Raises `BundleError` if the program, the file at `path`, is not whole.
    """
    try:
        methods = ProgramParts.parse(program).methods
    except NOT_WHOLE as error:
        raise damaged(path, error) from error
    # A method that the manifest lists and the program does not have reads nothing.
    return defaultdict(set, {name: _keys(method) for name, method in methods.items()})


def _keys(method: PackedMethod) -> set[bytes]:
    names = [table.fields[TENSOR_NAME_FIELD] for table in method.source.table.walk() if table.kind == TENSOR_NAME]
    keys = {name.data for name in names if isinstance(name, Vector)}
    return keys.union(*(content_keys(payload) for payload in method.payloads))
