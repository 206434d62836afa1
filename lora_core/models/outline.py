"""A base model without its weights: the structure to lower, and where each parameter is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    from lora_core.models.base import BaseModel


@attrs.frozen(kw_only=True)
class Outline:
    """A base whose weights have not been read.

    The parameters of `base.module` are on torch's meta device (shapes, no data), its buffers are those of the loaded
    base. `sources` has for every parameter, by its name in the module, the stored tensor that fills it; parameters with
    one source are tied. Nothing but the parameters' values tells the loaded base from this one.
    """

    base: BaseModel
    sources: Mapping[str, LazyTensor]

    def fill(self, values: Mapping[str, Any]) -> BaseModel:
        """Give every parameter the torch tensor that `values` has for its source's name, in place; return the base.

        Tied parameters share their tensor. Raises `ModelError` if a parameter has no source, or a source no parameter.
        """
        given = {path: values[source.name] for path, source in self.sources.items()}
        module = self.base.module
        result = module.load_state_dict(given, strict=False, assign=True)
        empty = [name for name, parameter in module.named_parameters() if parameter.is_meta]
        if empty or result.unexpected_keys:
            others = ", ".join(empty + result.unexpected_keys)
            raise ModelError(f"The module and its weights have other parameters: {others}")
        module.requires_grad_(False)
        return self.base
