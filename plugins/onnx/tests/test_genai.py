"""onnxruntime-genai runs a bundle as it lies: the base, and every adapter that was exported or added."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lora_core
from plugins.onnx.tests.conftest import CONTEXT
from plugins.onnx.tests.test_oracle import greedy

PROMPT = [1, 5, 9, 4]
# A process of its own: the library keeps threads that outlive its objects.
SCRIPT = """
import json, sys
import numpy as np
import onnxruntime_genai as og

bundle, length, prompt = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
model = og.Model(bundle)
adapters = og.Adapters(model)
for name in ("alice", "bob"):
    adapters.load(f"{bundle}/adapters/{name}.onnx_adapter", name)
texts = {}
for name in ("", "alice", "bob"):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length)
    generator = og.Generator(model, params)
    if name:
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    texts[name] = [int(token) for token in generator.get_sequence(0)]
print(json.dumps(texts))
"""


def test_greedy_texts_are_those_of_a_session(bundle: Path) -> None:
    arguments = [sys.executable, "-c", SCRIPT, str(bundle), str(CONTEXT), json.dumps(PROMPT)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    texts = json.loads(ran.stdout.splitlines()[-1])
    with lora_core.open(bundle) as session:
        ours = {name: greedy(session, name or None, PROMPT, length=CONTEXT) for name in texts}
        ends = session.bundle.manifest.base.eos_ids
    assert {name: text[: len(texts[name])] for name, text in ours.items()} == texts
    # Its sequence leaves out the token that ended it.
    assert all(len(text) == CONTEXT or ours[name][len(text)] in ends for name, text in texts.items())
    assert len({tuple(text) for text in texts.values()}) == 3
