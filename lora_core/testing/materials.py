"""What the conformance kit works with: a tiny model, adapters of unlike shapes, texts, and the reference's answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference, CompositePart
from lora_core.models.hf import HfModel, HfModelSource
from lora_core.testing.comparison import file_hashes
from lora_core.testing.tiny import TINY_LLAMA, write_tiny_adapter, write_tiny_checkpoint

if TYPE_CHECKING:
    import numpy.typing as npt

RANK = 12
"""The largest rank of any adapter of the kit."""
ADAPTERS = ("alice", "bob", "carol", "mix")
WEAKER = "carol@0.5"
"""A selection: carol at half the strength that she is linked at."""
BLENDED = f"alice:0.7+carol:{-0.5 / 1.5}"
"""A selection of linked adapters that is what `mix` is linked as."""
CONTEXT_LEN = 32
SCALE, EMBEDDING_SCALE = 0.08, 0.25
"""Of the weights: a smooth model, so that 4 bits, which hurt small random models most, keep to their limits."""
MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@attrs.define(kw_only=True, slots=False)
class Materials:
    """Files below `root`, made when they are first asked for. Several backends can share them.

    - alice: an odd rank (3) on q and v;
    - bob: a rank beyond 8 (12) on the MLP, rank-stabilized (rsLoRA);
    - carol: other ranks and alphas in some layers, all four layers of the attention, at one and a half of her strength;
    - mix: a composite of alice and carol, one of them taken away.
    """

    root: Path

    def model(self, seed: int = 0) -> Path:
        """Return the directory of the tiny model, or with another seed, of a different one of its shape."""
        directory = self.root / f"seed-{seed}" / "tiny"
        return (
            directory
            if directory.exists()
            else write_tiny_checkpoint(directory, seed=seed, scale=SCALE, embedding_scale=EMBEDDING_SCALE)
        )

    def model_elsewhere(self) -> Path:
        """Return a copy of the tiny model in another place."""
        directory = self.root / "elsewhere" / "tiny"
        return directory if directory.exists() else Path(shutil.copytree(self.model(), directory))

    def adapter(self, name: str) -> AdapterReference:
        """Return one of the kit's adapters."""
        if name == "mix":
            parts = (
                CompositePart(of=self._directory("alice"), strength=0.7),
                CompositePart(of=self._directory("carol"), strength=-0.5),
            )
            return AdapterReference(name=name, parts=parts)
        strength = 1.5 if name == "carol" else 1.0
        return AdapterReference(name=name, directory=Path(self._directory(name)), strength=strength)

    @cached_property
    def handle(self) -> HfModel:
        """The tiny model, opened."""
        return HfModelSource().open(str(self.model()))

    @cached_property
    def base(self) -> dict[str, npt.NDArray[np.float32]]:
        """The tiny model's tensors by name."""
        return {name: tensor.read() for name, tensor in self.handle.tensors().items()}

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Two texts of drawn tokens: one that fills the context, and a short one."""
        chance = np.random.default_rng(0)
        vocabulary = int(TINY_LLAMA["vocab_size"])
        return tuple(tuple(map(int, chance.integers(vocabulary, size=size))) for size in (CONTEXT_LEN, 11))

    @cached_property
    def logits(self) -> dict[str | None, tuple[npt.NDArray[np.float32], ...]]:
        """The reference's logits after every token of each text, by adapter (None: the base), and of the selections.

        Raises `ImportError` where torch or ExecuTorch is missing.
        """
        from lora_core.adapters.peft.format import PeftFormat
        from lora_core.verification.eager_reference import EagerReference

        weaker = AdapterReference(name="weaker", directory=Path(self._directory("carol")), strength=0.75)
        references = [*(self.adapter(name) for name in ADAPTERS), weaker]
        adapters = read_adapters(references, self.handle.summary, [PeftFormat()])
        reference = EagerReference(self.handle, adapters, length=CONTEXT_LEN)
        found = {
            name: tuple(np.array(reference.logits(name, text)) for text in self.texts)
            for name in (None, *ADAPTERS, "weaker")
        }
        return {**found, WEAKER: found["weaker"], BLENDED: found["mix"]}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What model and adapters hold, by file, as they were made."""
        for name in ADAPTERS:
            self.adapter(name)
        self.model()
        return self.current_hashes()

    def current_hashes(self) -> dict[str, str]:
        """What model and adapters hold now."""
        directories = (self.model(), self.root / "adapters")
        return {f"{each.name}/{file}": digest for each in directories for file, digest in file_hashes(each).items()}

    @contextmanager
    def taken_away(self, *, adapters: bool = True) -> Iterator[None]:
        """Take the model, and the adapters, away for as long as the block runs."""
        for name in ADAPTERS:
            self.adapter(name)
        moved = [(self.model().parent, self.root / "away-model")]
        moved += [(self.root / "adapters", self.root / "away-adapters")] if adapters else []
        for place, away in moved:
            place.rename(away)
        try:
            yield
        finally:
            for place, away in moved:
                shutil.rmtree(place, ignore_errors=True)  # somebody may have made it again
                away.rename(place)

    def _directory(self, name: str) -> str:
        directory = self.root / "adapters" / name
        if not directory.exists():
            _WRITERS[name](directory)
        return str(directory)


def _write_alice(directory: Path) -> None:
    write_tiny_adapter(directory, seed=1, rank=3, alpha=2, targets=("q_proj", "v_proj"))


def _write_bob(directory: Path) -> None:
    write_tiny_adapter(directory, seed=2, rank=RANK, alpha=2, targets=MLP, use_rslora=True)


def _write_carol(directory: Path) -> None:
    write_tiny_adapter(
        directory,
        seed=3,
        rank=2,
        alpha=1.5,
        targets=ATTENTION,
        rank_pattern={"layers.1.self_attn.q_proj": 7, "o_proj": 5},
        alpha_pattern={"layers.0.self_attn.k_proj": 0.5, "layers.1.self_attn.q_proj": 3},
    )


_WRITERS = {"alice": _write_alice, "bob": _write_bob, "carol": _write_carol}
