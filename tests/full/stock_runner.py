"""Ask programs one question with ExecuTorch's own `TextLLMRunner`, in a process of its own; print the answers as JSON.

python stock_runner.py TOKENIZER FOUNDATION PROMPT PROGRAM [...]
"""

from __future__ import annotations

import json
import sys

from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama::custom_sdpa
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

TEMPLATE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)


def answer(program: str, tokenizer: str, foundation: str, prompt: str) -> str:
    runner = TextLLMRunner(program, tokenizer, foundation)
    pieces: list[str] = []
    config = GenerationConfig(echo=False, max_new_tokens=24, temperature=0.0)
    runner.generate(TEMPLATE.format(prompt=prompt), config, token_callback=pieces.append)
    return "".join(pieces)


tokenizer, foundation, prompt, *programs = sys.argv[1:]
print(json.dumps([answer(program, tokenizer, foundation, prompt) for program in programs]))
