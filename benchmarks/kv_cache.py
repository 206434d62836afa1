"""What a KV cache in fewer bytes costs on XNNPACK, and what it saves.

    python benchmarks/kv_cache.py [--kinds fp32 fp16 int8] [--layers 4] [--context 1024] [--rounds 40]

Random blocks of SmolLM2-135M's shape with a small vocabulary, exported with each kind of cache. Prints a Markdown
table: bytes that the program plans (activations and cache), and CPU milliseconds of a token at the beginning and at the
end of the context, the least and the median.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rope_theta": 100000.0,
}
_CALL = 128
_NEAR = 16


def measured(kind: str, model: Path, out: Path, options: argparse.Namespace) -> str:
    """Return the row of the cache of `kind` for the checkpoint `model`."""
    import lora_core

    asked = {"kv_cache": kind, "max_context_len": options.context, "max_seq_len": _CALL}
    bundle = lora_core.export(model, backend="xnnpack", out=out, options=asked)
    with lora_core.open(bundle.path) as session:
        cells = []
        for start in (_NEAR, options.context - options.rounds):
            session.reset()
            for place in range(0, start, _CALL):
                session.step(None, [5] * min(_CALL, start - place), place)
            took = []
            for place in range(start, start + options.rounds):
                begun = time.process_time()
                session.step(None, [7], place)
                took.append(1e3 * (time.process_time() - begun))
            cells.append(f"{min(took):.2f} ({median(took):.2f})")
    planned = bundle.manifest.detail["planned_memory"]["base"]["forward"]
    return f"| {kind} | {planned:,} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["fp32", "fp16", "int8"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(argv)
    from lora_core.testing.tiny import TINY_LLAMA, write_tiny_checkpoint

    config = {**TINY_LLAMA, **SHAPE, "num_hidden_layers": options.layers, "max_position_embeddings": options.context}
    print(f"| cache | planned bytes | a token at {_NEAR}, ms | at {options.context - options.rounds}, ms |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        model = write_tiny_checkpoint(Path(directory, "model"), config=config)
        for kind in options.kinds:
            print(measured(kind, model, Path(directory, kind), options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
