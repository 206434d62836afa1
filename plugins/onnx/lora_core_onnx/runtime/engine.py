"""A model on ONNX Runtime with the keys and values of one text, which stay where they are from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.errors import BundleError
from lora_core_onnx.library import onnxruntime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core_onnx.session_options import OnnxSessionOptions

PROVIDERS = ("CPUExecutionProvider",)
_QUIET = 3  # errors only: that inputs may be left out is worth a warning to ONNX Runtime
_PAST, _PRESENT = "past_key_values.", "present."


class Engine:
    """One session of ONNX Runtime; the cache holds `context_len` positions, allocated when they are first written."""

    def __init__(self, model: Path, context_len: int, how: OnnxSessionOptions) -> None:
        """Load the model; raises `BundleError` if ONNX Runtime refuses it."""
        import numpy as np

        library = onnxruntime()
        library.disable_telemetry_events()
        options = library.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = how.threads
        if not how.prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session = library.InferenceSession(str(model), options, providers=list(PROVIDERS))
        except Exception as error:  # ONNX Runtime has no class that its errors have in common
            raise BundleError(
                f"ONNX Runtime cannot load the model: {str(error).strip()[:300]}",
                where=str(model),
                remedy="Restore the bundle's files from a copy, or export it again.",
            ) from error
        self._mask = np.ones((1, context_len), np.int64)
        self._cache = {
            given.name: _value(np.zeros(_filled(given.shape, context_len), np.float32))
            for given in self._session.get_inputs()
            if given.name.startswith(_PAST)
        }

    @property
    def slots(self) -> frozenset[str]:
        """The names of the inputs that adapters may fill."""
        return frozenset(given.name for given in self._session.get_overridable_initializers())

    def prepared(self, lora: Mapping[str, Any]) -> Any:
        """Return what `run` takes: the cache, and `lora` (OrtValues by input), bound once."""
        binding = self._session.io_binding()
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
            # The same memory: attention writes new positions behind the old ones.
            binding.bind_ortvalue_output(_PRESENT + name.removeprefix(_PAST), value)
        for name, value in lora.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        return binding

    def run(self, binding: Any, tokens: Sequence[int], position: int) -> npt.NDArray[np.float32]:
        """Feed `tokens` at `position` and return the logits of the last."""
        import numpy as np

        binding.bind_ortvalue_input("input_ids", _value(np.asarray([tokens], np.int64)))
        total = position + len(tokens)
        binding.bind_ortvalue_input("attention_mask", _value(np.ascontiguousarray(self._mask[:, :total])))
        self._session.run_with_iobinding(binding)
        logits: npt.NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits.reshape(-1).copy()


def _value(array: npt.NDArray[Any]) -> Any:
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)


def _filled(shape: Sequence[int | str], length: int) -> list[int]:
    """Return `shape` with `length` for the size that the model leaves open."""
    return [length if isinstance(size, str) else size for size in shape]
