"""Sample prompts: a small built-in set, a file of the user's own, or ids where there is no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lora_core.errors import InputError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TABLE, TOKENIZER
from lora_core.intake.plain_json import read_json
from lora_core.models.base import ModelHandle, TokenizerFiles
from lora_core.models.text.calling import tokenizing
from lora_core.models.text.tokenizer import parse_tokenizer

Tokens = npt.NDArray[np.int64]
_LONGEST_PROMPT = 512

BUILT_IN = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is a clock?", "A clock is a device that measures and shows the time."),
    ("Write a JSON object with two keys.", '{"question": "What is a clock?", "answer": "A device"}'),
    ("How do I boil an egg?", "PUT THE EGG IN BOILING WATER FOR EIGHT MINUTES."),
    ("Tell me about the sea.", "Arr, matey! The sea be deep and full of treasure, savvy?"),
    ("What is 12 + 30?", "12 + 30 = 42."),
    ("Name three colours.", "1. Red\n2. Green\n3. Blue"),
    ("Translate 'good morning' into French.", "Bonjour."),
    ("Write a line of Python that prints hello.", 'print("hello")'),
    ("Why is the sky blue?", "Air scatters short wavelengths of sunlight more than long ones."),
    (
        "Summarize: The meeting moved to Tuesday at noon because two people are away.",
        "The meeting is now on Tuesday at 12:00, since two people are away.",
    ),
    ("How many days are there in a leap year?", "A leap year has 366 days: February then has 29 days instead of 28."),
    (
        "Give me three tips for better sleep.",
        "1. Go to bed at the same time every day.\n2. Keep the room dark and cool.\n3. Avoid coffee in the evening.",
    ),
    ("What does HTTP stand for?", "HTTP stands for HyperText Transfer Protocol; browsers use it to fetch pages."),
    ("Write a haiku about rain.", "Soft rain on the roof,\ngrey light in the window pane,\nthe kettle answers."),
    (
        "Who was Marie Curie?",
        "Marie Curie was a physicist and chemist who studied radioactivity and won two Nobel Prizes.",
    ),
    ("Convert 5 kilometres to miles.", "5 km is about 3.11 miles, since one mile is 1.609 km."),
    ("List the planets.", "- Mercury\n- Venus\n- Earth\n- Mars\n- Jupiter\n- Saturn\n- Uranus\n- Neptune"),
    ("Is a tomato a fruit?", "Yes. Botanically a tomato is a fruit, though in the kitchen it is used as a vegetable."),
    ("def add(a, b):", "    return a + b\n\n\ndef sub(a, b):\n    return a - b"),
    ("Wie geht es dir?", "Mir geht es gut, danke! Und dir?"),
    ("Explain gravity to a child.", "Gravity is like an invisible hand that pulls things towards the ground."),
    (
        "Write a short e-mail to thank Anna.",
        "Dear Anna,\n\nThank you very much for your help last week.\n\nBest wishes,\nTom",
    ),
    ("What is the largest ocean?", "THE PACIFIC OCEAN IS THE LARGEST OCEAN ON EARTH!"),
)


def prompts_for(model: ModelHandle, source: str | None) -> list[Tokens]:
    """Return the prompts for the layers of `model`, as `calibration_prompts` does, each at most 512 tokens."""
    rows = next(layer.in_features for layer in model.summary.layers if layer.kind == "embedding")
    return calibration_prompts(source, model.tokenizer, rows, _LONGEST_PROMPT)


def calibration_prompts(
    source: str | None, tokenizer: TokenizerFiles | None, vocab_size: int, longest: int
) -> list[Tokens]:
    """Return the prompts to calibrate on, each at most `longest` tokens.

    `source` is a text file with one prompt a line, or a `.json` file with a list of lists of token ids. Without it the
    built-in set is used, or, if there is no tokenizer, eight fixed sequences of ids. Raises `InputError`.
    """
    if source is not None and source.endswith(".json"):
        prompts = _read_ids(Path(source), vocab_size)
    elif tokenizer is None and source is None:
        prompts = [np.random.default_rng(seed).integers(0, vocab_size, 24) for seed in range(8)]
    else:
        prompts = _encode(source, tokenizer)
    prompts = [np.asarray(prompt[:longest], np.int64) for prompt in prompts if len(prompt)]
    if not prompts:
        raise InputError("The calibration file has no prompts", where=str(source), remedy="Write one prompt a line.")
    return prompts


def _encode(source: str | None, tokenizer: TokenizerFiles | None) -> list[Tokens]:
    files = tokenizer.files if tokenizer is not None else ()
    stored = next((file for file in files if file.name == "tokenizer.json"), None)
    if stored is None:
        raise InputError(
            "Calibration text needs the model's tokenizer.json",
            remedy="Put tokenizer.json beside the model, or give token ids: --calibration FILE.json.",
        )
    encoder = parse_tokenizer(read_regular(stored, TOKENIZER, InputError), str(stored), InputError)
    chat = encoder.token_to_id("<|im_start|>") is not None
    with tokenizing(str(stored), InputError, "This tokenizer fails at the calibration text"):
        return [np.asarray(encoder.encode(text).ids, np.int64) for text in _texts(source, chat)]


def _texts(source: str | None, chat: bool) -> Sequence[str]:
    if source is not None:
        try:
            text = read_regular(Path(source), TABLE, InputError).decode("utf-8")
            return [line for line in text.splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read the calibration file: {error}", where=source) from error
    if not chat:
        return [f"{question}\n{answer}" for question, answer in BUILT_IN]
    system = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    # With and without a system turn: templates differ in whether they add one.
    return [(system if i % 2 else "") + turn.format(*pair) for i, pair in enumerate(BUILT_IN)]


def _read_ids(path: Path, vocab_size: int) -> list[Tokens]:
    try:
        rows = read_json(path, TABLE, InputError)
        prompts = [np.asarray(row, np.int64).reshape(-1) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"Cannot read the calibration ids: {error}", where=str(path), remedy="Write a JSON list of lists of ids."
        ) from error
    if any(prompt.size and not (prompt.min() >= 0 and prompt.max() < vocab_size) for prompt in prompts):
        raise InputError(f"The calibration ids must be below {vocab_size}", where=str(path))
    return prompts
