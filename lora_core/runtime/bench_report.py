"""What a run gave: answers, speed, and memory after each load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.runtime.generation import Generation
from lora_core.runtime.memory import Memory
from lora_core.runtime.session import Loaded


@attrs.frozen(kw_only=True)
class Answer:
    """The text that one adapter (None: the base) generated for one prompt."""

    adapter: str | None
    prompt: str
    text: str
    generation: Generation

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read in a second."""
        return self.generation.prompt_tokens / self.generation.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens generated in a second after the first; None if there was no further one."""
        steps = self.generation.decode_steps
        return steps / self.generation.decode_seconds if steps else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "adapter": self.adapter,
            "prompt": self.prompt,
            "text": self.text,
            **attrs.asdict(self.generation),
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@attrs.frozen(kw_only=True)
class RunReport:
    """A run: `before` is the memory before anything was loaded, `loads` each load in order, `facts` the session's."""

    before: Memory
    loads: tuple[Loaded, ...]
    answers: tuple[Answer, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "facts": dict(self.facts),
            "memory_before": attrs.asdict(self.before),
            "loads": [attrs.asdict(load) for load in self.loads],
            "answers": [answer.to_json() for answer in self.answers],
        }
