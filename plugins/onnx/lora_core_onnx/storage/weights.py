"""External data of an ONNX model, written tensor by tensor.

Format: onnx's `docs/ExternalData.md`. A tensor of a model names the file, offset and length of its bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Runtimes map large tensors, which is cheapest at the start of a page; small ones would be mostly padding.
_PAGE, _LINE = 4096, 64
_LARGE = 16 * _PAGE


@attrs.frozen(kw_only=True)
class External:
    """A tensor that is stored: `dtype` is a value of `onnx.TensorProto.DataType`, the place is in bytes."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    size: int


class WeightsFile:
    """The file as it grows, and its SHA-256. No more than one block is in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._end = 0
        self.tensors: list[External] = []

    def add(self, name: str, dtype: int, shape: Sequence[int], blocks: Iterable[npt.NDArray[Any]]) -> None:
        """Append the tensor that `blocks` give one after another, row after row."""
        import numpy as np
        from onnx.helper import tensor_dtype_to_np_dtype

        stored: np.dtype[Any] = tensor_dtype_to_np_dtype(dtype)
        size = math.prod(shape) * stored.itemsize
        alignment = _PAGE if size >= _LARGE else _LINE
        self._write(bytes(-self._end % alignment))
        start = self._end
        for block in blocks:
            self._write(np.ascontiguousarray(block, dtype=stored.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        if self._end - start != size:
            raise AssertionError(f"{name} has {size} bytes, and {self._end - start} came")
        self.tensors.append(External(name=name, dtype=dtype, shape=tuple(shape), offset=start, size=size))

    def again(self, name: str, shape: Sequence[int], stored: str) -> None:
        """Give the tensor called `stored` another name and shape; its bytes are there once."""
        first = next(tensor for tensor in self.tensors if tensor.name == stored)
        self.tensors.append(attrs.evolve(first, name=name, shape=tuple(shape)))

    def close(self) -> str:
        """Close the file and return the SHA-256 of its bytes."""
        self._file.close()
        return self._digest.hexdigest()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._end += len(data)

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
