"""The reference computed by our own eager module, before anything was lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import place_alone
from lora_core.errors import UnsupportedError
from lora_core.models.base import BaseModel, ModelHandle, ModelOptions
from lora_core.models.reference_model import ReferenceModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Below this, torch.export's room for a dynamic length is refused (lora_core/models/executorch/transformer.py).
_SHORTEST = 8


class EagerReference(ReferenceModel):
    """The module that an export starts from, in float32, with LoRA injected; all tokens are always fed at once.

    It shares the reading of checkpoints and adapters with the export and so proves less than transformers does.
    """

    def __init__(self, model: ModelHandle, adapters: Sequence[Adapter], *, length: int) -> None:
        """Load `model` for texts of up to `length` tokens; raises `UnsupportedError` if it does not take tokens."""
        length = max(length, _SHORTEST)
        options = ModelOptions(max_context_len=length, max_seq_len=length, full_logits=True)
        self._base = model.load(options)
        self._adapters = {adapter.name: adapter for adapter in adapters}
        _require_tokens(self._base)

    @property
    def name(self) -> str:
        """Name it, with torch's version."""
        import torch

        return f"lora-core's eager module (torch {torch.__version__}), float32"

    def logits(self, adapter: str | None, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run all tokens from position 0."""
        import numpy as np
        import torch

        from lora_core.models.injection import eject, inject

        module = self._base.module
        if adapter is not None:
            (placed,) = place_alone([self._adapters[adapter]], self._base.summary.layers)
            inject(module, placed.plan, self._base.paths, placed.values_by_module())
        try:
            with torch.no_grad():
                result = self._run(tokens)
                if len(result) == 1 and len(tokens) > 1:  # it returns the last logits only
                    result = np.concatenate([self._run(tokens[: end + 1]) for end in range(len(tokens))])
        finally:
            eject(module)
        if len(result) != len(tokens):
            raise UnsupportedError("The module returns logits of some positions only, so it is no reference.")
        return result

    def _run(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the rows of logits that the module gives for `tokens` from position 0."""
        import torch

        positions = [_position(example) for example in self._base.example_args[1:]]
        out = self._base.module(torch.tensor([list(tokens)]), *positions)
        rows: npt.NDArray[np.float32] = out.float().numpy().reshape(-1, out.shape[-1]).copy()
        return rows


def _position(example: Any) -> Any:
    """Return position 0 in the form of the second example input: a mapping or a tensor."""
    import torch

    start = torch.tensor([0], dtype=torch.long)
    return {"input_pos": start} if isinstance(example, dict) else start


def _require_tokens(base: BaseModel) -> None:
    import torch

    inputs = base.example_args
    fits = len(inputs) in (1, 2) and isinstance(inputs[0], torch.Tensor) and inputs[0].dim() == 2
    fits = fits and not inputs[0].is_floating_point() and not base.example_kwargs
    if not fits or not all(isinstance(each, dict | torch.Tensor) for each in inputs[1:]):
        raise UnsupportedError(
            f"Model {base.summary.name!r} takes neither (tokens) nor (tokens, position), so its numbers cannot be "
            "compared here.",
            remedy="Compare the session's logits with your own module's.",
        )
