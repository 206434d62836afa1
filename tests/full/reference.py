"""transformers and peft on the real model: what they would say after each token of a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.limits import FLOAT32


@attrs.frozen(kw_only=True)
class Reference:
    """A model of transformers in float32, with peft's adapters by name."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, directory: Path, adapters: Mapping[str, Path]) -> Reference:
        import peft
        import torch
        import transformers

        (first, given), *others = adapters.items()
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(model, given, adapter_name=first)
        for name, path in others:
            model.load_adapter(path, adapter_name=name)
        return cls(model=model.eval(), tokenizer=transformers.AutoTokenizer.from_pretrained(directory))

    def prompted(self, prompt: str) -> list[int]:
        """Return the tokens that the model is given for a prompt."""
        asked = [{"role": "user", "content": prompt}]
        found = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        tokens: list[int] = found["input_ids"]
        return tokens

    def departures(self, adapter: str | None, prompt: str, text: list[int], longest: int) -> list[tuple[int, int, int]]:
        """Return where `text`, of at most `longest` tokens, is not the greedy one: place, token, and the greedy token.

        Each token is held against what the model says after those before it, so one pass tells them all. At a tie
        float32 does not say which token comes first. A text that is shorter must end where the model ends it, with or
        without the token that ends it.
        """
        import torch

        (end,) = {self.model.generation_config.eos_token_id}
        ended = [*text, end] if len(text) < longest and text[-1:] != [end] else text
        asked = self.prompted(prompt)
        self.model.set_adapter(adapter or next(iter(self.model.peft_config)))
        with torch.no_grad():
            ids = torch.tensor([[*asked, *ended]])
            if adapter is None:
                with self.model.disable_adapter():
                    logits = self.model(ids).logits[0]
            else:
                logits = self.model(ids).logits[0]
        found = []
        for place, (token, row) in enumerate(zip(ended, logits[len(asked) - 1 : -1], strict=True)):
            greedy = int(row.argmax())
            early = token == end and place + 1 < len(ended)
            if early or row[greedy] - row[token] > FLOAT32.tie * row.std():
                found.append((place, token, greedy))
        return found
