"""What is used of coremltools' protobuf messages, as protocols: the generated classes have no types.

Names of fields are those of Model.proto and MIL.proto in coremltools 9.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Protocol, Self, TypeVar, overload

T = TypeVar("T")


class Message(Protocol):
    """Any message."""

    def CopyFrom(self, other: Self) -> None:
        """Become equal to `other`."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """Return the message's bytes."""

    def ParseFromString(self, data: bytes) -> int:
        """Become the message of `data`."""


class Repeated(Protocol[T]):
    """A repeated field."""

    def __iter__(self) -> Iterator[T]: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __delitem__(self, index: int | slice) -> None: ...
    def extend(self, values: Iterable[T]) -> None:
        """Append copies of `values`."""

    def add(self) -> T:
        """Append a new message and return it."""


class MilReference(Message, Protocol):
    """`Value.BlobFileValue`: where in the blob file a constant's record stands."""

    fileName: str
    offset: int


class MilTensorValue(Message, Protocol):
    """`TensorValue`: numbers of one type, in the field of the group `value` that is set."""

    bools: MilBools

    def WhichOneof(self, group: str) -> str | None:
        """Return which field of the group `value` is set."""


class MilBools(Message, Protocol):
    """`RepeatedBools`."""

    values: Repeated[bool]


class MilImmediate(Message, Protocol):
    """`ImmediateValue`."""

    tensor: MilTensorValue


class MilValue(Message, Protocol):
    """`Value`: a constant, or a reference into the blob file."""

    type: MilType
    immediateValue: MilImmediate
    blobFileValue: MilReference

    def WhichOneof(self, group: str) -> str | None:
        """Return which field of the group `value` is set."""


class MilBinding(Message, Protocol):
    """`Argument.Binding`: the name of a value, or a constant in its place."""

    name: str
    value: MilValue

    def WhichOneof(self, group: str) -> str | None:
        """Return which field of the group `binding` is set."""


class MilArgument(Message, Protocol):
    """`Argument`."""

    arguments: Repeated[MilBinding]


class MilType(Message, Protocol):
    """`ValueType`: in what is used here, that of a tensor."""

    tensorType: MilTensorType


class MilTensorType(Message, Protocol):
    """`TensorType`: the type of the elements, and the sizes."""

    dataType: int
    dimensions: Repeated[MilDimension]


class MilDimension(Message, Protocol):
    """`Dimension` of a known size."""

    constant: MilConstantDimension


class MilConstantDimension(Message, Protocol):
    """`ConstantDimension`."""

    size: int


class MilNamedType(Message, Protocol):
    """`NamedValueType`: an input of a function or a result of an operation."""

    name: str
    type: MilType


class MilBlock(Message, Protocol):
    """`Block`: operations in order, and which of their results it returns."""

    outputs: Repeated[str]
    operations: Repeated[MilOperation]


class MilOperation(Message, Protocol):
    """`Operation`."""

    type: str
    inputs: MutableMapping[str, MilArgument]
    outputs: Repeated[MilNamedType]
    blocks: Repeated[MilBlock]
    attributes: MutableMapping[str, MilValue]


class MilFunction(Message, Protocol):
    """`Function`: one block for each opset; reading a key that is not there makes it."""

    inputs: Repeated[MilNamedType]
    opset: str
    block_specializations: MutableMapping[str, MilBlock]


class MilProgram(Message, Protocol):
    """`Program`."""

    version: int
    functions: MutableMapping[str, MilFunction]
    attributes: MutableMapping[str, MilValue]


class FeatureArray(Message, Protocol):
    """`ArrayFeatureType`: the type of the elements, and the sizes."""

    dataType: int
    shape: Repeated[int]


class FeatureType(Message, Protocol):
    """`FeatureType`: here always an array."""

    multiArrayType: FeatureArray


class Feature(Message, Protocol):
    """`FeatureDescription`: an input or output."""

    name: str
    type: FeatureType


class FunctionDescription(Message, Protocol):
    """`FunctionDescription`: what a function of several takes and returns."""

    name: str
    input: Repeated[Feature]
    output: Repeated[Feature]
    state: Repeated[Feature]


class ModelMetadata(Message, Protocol):
    """`Metadata`."""

    userDefined: MutableMapping[str, str]


class ModelDescription(Message, Protocol):
    """`ModelDescription`: of the only function, or of several."""

    functions: Repeated[FunctionDescription]
    defaultFunctionName: str
    metadata: ModelMetadata
    input: Repeated[Feature]
    output: Repeated[Feature]
    state: Repeated[Feature]


class MilModel(Message, Protocol):
    """`Model`: an ML program with its description."""

    specificationVersion: int
    description: ModelDescription
    mlProgram: MilProgram
