"""Which stored data the methods of one program read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lora_core.pte import Buffer
from lora_core_xnnpack.files.named_blobs import string_bytes
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.files.program_root import NOT_WHOLE, damaged
from lora_core_xnnpack.files.schema import TENSOR_NAME, TENSOR_NAME_FIELD
from lora_core_xnnpack.files.tables import Vector


def method_texts(program: Buffer, path: Path) -> Mapping[str, bytes]:
    """Return for each method of a program all that names data: its delegates' payloads and its tensors' names, the
    latter as flatbuffer strings. Raises `BundleError` if the program, the file at `path`, is not whole.
    """
    try:
        methods = ProgramParts.parse(program).methods
    except NOT_WHOLE as error:
        raise damaged(path, error) from error
    # A method that the manifest lists and the program does not have reads nothing.
    return defaultdict(bytes, {name: _text(method) for name, method in methods.items()})


def _text(method: PackedMethod) -> bytes:
    names = [table.fields[TENSOR_NAME_FIELD] for table in method.source.table.walk() if table.kind == TENSOR_NAME]
    strings = [string_bytes(name.data) for name in names if isinstance(name, Vector)]
    return b"".join((*(bytes(payload) for payload in method.payloads), *strings))
