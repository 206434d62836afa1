"""Named refusals of the simulator.

The vendor publishes no return codes for a mismatched section, so these names are the simulator's own: each stands for
one published rule, and none of them is claimed to be what a device reports.
"""

from __future__ import annotations

from lora_core.errors import BundleError, InputError, LoraCoreError, UsageError


class SimulatorError(LoraCoreError):
    """Base of all refusals of the simulated runtime; the names are the simulator's own, not the vendor's."""


class DamagedContainerError(SimulatorError, BundleError):
    """A container file cannot be read, or its bytes are not those it was written with."""

    exit_code = BundleError.exit_code


class ContainerVersionError(SimulatorError, BundleError):
    """A container was written by another version of the format."""

    exit_code = BundleError.exit_code


class SectionError(SimulatorError, BundleError):
    """Base of the refusals of a section; what was applied before stays applied."""

    exit_code = BundleError.exit_code


class RenamedSectionError(SectionError):
    """A section's file name is not the one it was written under."""


class ForeignBaseError(SectionError):
    """A section was made for another quantized base."""


class ForeignGraphError(SectionError):
    """A section was made for another graph: other topology, slots, ranks or mode."""


class NotUpdatableError(SectionError):
    """A section changes a tensor that is not declared updatable."""


class OutOfScopeError(SectionError):
    """A section changes encodings that the mode keeps fixed."""


class TensorShapeError(SectionError):
    """A tensor of a section has another shape than the graph."""


class TensorDtypeError(SectionError):
    """A tensor of a section has another data type than the graph, or an encoding another bit width."""


class IncompleteSectionError(SectionError):
    """A section leaves out updatable tensors, so that those of the last adapter would stay."""


class SectionsNotAllowedError(SectionError):
    """The context takes no sections: all its adapters live in one concurrency (hot switch)."""


class EncodingsFirstError(SectionError):
    """Weights of another group were applied before that group's encodings."""


class ExecutionError(SimulatorError, UsageError):
    """Base of the refusals to execute; nothing changes."""

    exit_code = UsageError.exit_code


class MismatchedEncodingsError(ExecutionError):
    """The encodings of one group are applied with the weights of another."""


class StaleIoEncodingsError(ExecutionError):
    """A section was applied after the I/O encodings were read."""


class StaleKvCacheError(ExecutionError):
    """The KV cache was filled by another adapter or at another strength."""


class PositionError(ExecutionError):
    """The tokens do not follow what the KV cache holds, or do not fit the context."""


class StaticShapeError(ExecutionError):
    """The inputs do not have the static shape of the graph."""


class GraphNotLoadedError(ExecutionError):
    """The graph is not loaded."""


class GraphLoadedError(ExecutionError):
    """The graph is already loaded."""


class AlphaVectorError(ExecutionError):
    """The alpha vector does not fit the graph's input."""


class EncodingsFileError(InputError):
    """A file of encodings cannot be read, or names tensors that the graph does not have."""


class GroupingError(UsageError):
    """Groups that contradict each other, the adapters or the mode."""
