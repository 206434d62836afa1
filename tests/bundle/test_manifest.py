"""`manifest.json` has one form, and a wrong one is refused with every problem named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.bundle import SCHEMA_VERSION, Artifact, BundledAdapter, Manifest, Method
from lora_core.bundle.manifest import dumps, loads, normalized
from lora_core.errors import BundleError, LoraCoreError
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.prompting import Prompting

GOLDEN = Path(__file__).parent / "golden" / f"manifest-schema-{SCHEMA_VERSION}.json"

TEXT_FILES = (
    Artifact(path="tokenizer/tokenizer.json", role="tokenizer", sha256="7e" * 32, size=99),
    Artifact(
        path="tokenizer/adapters/pirate/chat_template.jinja",
        role="tokenizer",
        sha256="c7" * 32,
        size=9,
        adapter="pirate",
    ),
)
SAMPLE = Manifest(
    backend="xnnpack",
    base=ModelSummary(
        name="SmolLM2-135M-Instruct",
        family="llama",
        layers=(
            LayerInfo(name="model.embed_tokens", kind="embedding", in_features=128, out_features=64),
            LayerInfo(
                name="model.layers.0.self_attn.q_proj",
                kind="linear",
                in_features=64,
                out_features=64,
                has_bias=True,
            ),
            LayerInfo(
                name="lm_head",
                kind="linear",
                in_features=64,
                out_features=128,
                is_output=True,
                tied_to="model.embed_tokens",
            ),
        ),
        module_names=("model", "model.layers.0.self_attn.q_proj", "lm_head"),
        identities=("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        config={"rope_theta": 100000.0, "architectures": ["LlamaForCausalLM"], "rope_scaling": None},
        context_len=8192,
        vocab_size=128,
        bos_id=1,
        eos_ids=(2,),
    ),
    policy={"name": "8da4w", "linear": {"bits": 4, "group_size": 32}},
    foundation="0f" * 32,
    plans=(SlotPlan(slots=(Slot(module="model.layers.0.self_attn.q_proj", in_features=64, out_features=64, rank=8),)),),
    options={"max_context_len": 256, "adapter_data": "external"},
    versions={"torch": "2.13.0", "executorch": "1.5.1", "lora-core": "0.1.0"},
    artifacts=(
        Artifact(path="foundation.ptd", role="foundation", sha256="0f" * 32, size=4096),
        Artifact(path="base.pte", role="program", sha256="ba" * 32, size=512),
        Artifact(path="pirate.pte", role="program", sha256="a1" * 32, size=600, adapter="pirate"),
        Artifact(path="pirate.ptd", role="adapter-data", sha256="a2" * 32, size=128, adapter="pirate"),
        *TEXT_FILES,
    ),
    adapters=(
        BundledAdapter(
            name="pirate",
            digest="d1" * 32,
            foundation="0f" * 32,
            rank=8,
            modules=1,
            detail={"strength": 0.5},
            prompting=Prompting(
                tokenizer="tokenizer/tokenizer.json",
                chat_templates={"default": "tokenizer/adapters/pirate/chat_template.jinja"},
                special_tokens={"eos_token": "<|end|>"},
                bos_id=1,
                eos_ids=(3, 2),
            ),
        ),
    ),
    methods=(
        Method(name="pirate", program="pirate.pte", adapter="pirate"),
        Method(name="forward", program="base.pte"),
    ),
    detail={"runner": "Grüße"},
    prompting=Prompting(
        tokenizer="tokenizer/tokenizer.json",
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        bos_id=1,
        eos_ids=(2,),
    ),
    base_weights="d" * 64,
)


def before_weights(manifest):
    """Return `manifest` as schema 3 could say it."""
    return attrs.evolve(manifest, base_weights=None)


def before_prompting(manifest):
    """Return `manifest` as schema 2 could say it."""
    return attrs.evolve(
        manifest,
        prompting=None,
        adapters=tuple(attrs.evolve(adapter, prompting=None) for adapter in manifest.adapters),
        artifacts=tuple(artifact for artifact in manifest.artifacts if artifact not in TEXT_FILES),
    )


def test_the_golden_file_of_this_schema_is_what_is_written():
    assert dumps(SAMPLE) == GOLDEN.read_bytes()


def test_a_manifest_of_schema_4_that_does_not_tell_weights_is_still_read():
    document = json.loads(dumps(SAMPLE))
    del document["base_weights"]
    assert loads(json.dumps(document).encode(), "manifest.json") == normalized(before_weights(SAMPLE))


@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION + 1))
def test_the_golden_file_of_every_schema_is_still_read(schema):
    golden = GOLDEN.with_name(f"manifest-schema-{schema}.json")
    expected = SAMPLE
    if schema < 4:
        expected = before_weights(expected)
    if schema < 3:
        expected = before_prompting(expected)
    assert loads(golden.read_bytes(), "manifest.json") == normalized(expected)


def test_the_order_of_artifacts_adapters_methods_and_keys_does_not_change_the_bytes():
    chance = random.Random(3)
    for _ in range(20):
        shuffled = {
            field: tuple(chance.sample(getattr(SAMPLE, field), len(getattr(SAMPLE, field))))
            for field in ("artifacts", "adapters", "methods")
        }
        options = dict(chance.sample(list(SAMPLE.options.items()), len(SAMPLE.options)))
        assert dumps(attrs.evolve(SAMPLE, options=options, **shuffled)) == dumps(SAMPLE)


def test_the_file_is_text_with_one_record_a_line():
    lines = dumps(SAMPLE).decode().split("\n")
    assert lines[-1] == ""
    assert sum('"role"' in line for line in lines) == len(SAMPLE.artifacts)
    assert sum('"has_bias"' in line for line in lines) == len(SAMPLE.base.layers)
    assert any("Grüße" in line for line in lines)


names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
free = st.dictionaries(names, plain, max_size=3)
sizes = st.integers(0, 2**50)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
layers = st.builds(
    LayerInfo,
    name=names,
    kind=st.sampled_from(["linear", "embedding"]),
    in_features=sizes,
    out_features=sizes,
    has_bias=st.booleans(),
    is_output=st.booleans(),
    tied_to=st.none() | names,
)
summaries = st.builds(
    ModelSummary,
    name=names,
    family=names,
    layers=st.lists(layers, max_size=3).map(tuple),
    module_names=st.lists(names, max_size=3).map(tuple),
    identities=st.lists(names, max_size=2).map(tuple),
    config=free,
    context_len=st.none() | sizes,
    vocab_size=st.none() | sizes,
    bos_id=st.none() | sizes,
    eos_ids=st.lists(sizes, max_size=2).map(tuple),
)
slots = st.builds(Slot, module=names, in_features=sizes, out_features=sizes, rank=sizes)
plans = st.builds(SlotPlan, slots=st.lists(slots, max_size=3).map(tuple))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    adapters = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True), unique=True, max_size=4))
    programs = ["base.bin", *(f"{name}/program.bin" for name in adapters)]
    owners = [None, *adapters]
    known = draw(st.lists(plans, min_size=1, max_size=2).map(tuple))
    return Manifest(
        backend=draw(names),
        base=draw(summaries),
        policy=draw(free),
        foundation=draw(hexes),
        plans=known,
        options=draw(free),
        versions=draw(st.dictionaries(names, names, max_size=2)),
        artifacts=tuple(
            Artifact(path=path, role=draw(names), sha256=draw(hexes), size=draw(sizes), adapter=owner)
            for path, owner in zip(programs, owners, strict=True)
        ),
        adapters=tuple(
            BundledAdapter(
                name=name,
                digest=draw(hexes),
                foundation=draw(hexes),
                rank=draw(sizes),
                modules=draw(sizes),
                plan=draw(st.integers(0, len(known) - 1)),
                detail=draw(free),
            )
            for name in adapters
        ),
        methods=tuple(
            Method(name=owner or "forward()", program=path, adapter=owner)
            for path, owner in zip(programs, owners, strict=True)
        ),
        detail=draw(free),
    )


@settings(max_examples=60)
@given(manifests())
def test_reading_returns_what_was_written(manifest):
    data = dumps(manifest)
    assert loads(data, "manifest.json") == normalized(manifest)
    assert dumps(loads(data, "manifest.json")) == data


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_value_anywhere_is_refused_or_read_as_plain_data(data):
    """Replace any one value of the document by any plain data: `BundleError` or a manifest, never another exception."""
    document = json.loads(GOLDEN.read_bytes())
    parent, key = data.draw(st.sampled_from(list(_places(document))))
    parent[key] = data.draw(plain)
    read = read_or_refused(json.dumps(document).encode())
    if isinstance(read, BundleError):
        assert all(problem.where.startswith("manifest.json") for problem in read.problems)
    else:
        assert loads(dumps(read), "manifest.json") == normalized(read)


def read_or_refused(data: bytes) -> Manifest | BundleError:
    try:
        return loads(data, "manifest.json")
    except BundleError as error:
        return error


def _places(node):
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def broken(**changes) -> bytes:
    document = json.loads(GOLDEN.read_bytes())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = document
        for parent in parents:
            node = node[int(parent)] if parent.isdigit() else node[parent]
        if value is KeyError:
            del node[last]
        else:
            node[last] = value
    return json.dumps(document).encode()


def test_every_wrong_field_is_named_at_once():
    data = broken(
        backend=KeyError,
        base__name=7,
        base__layers__1__in_features="64",
        base__layers__0__has_bias=1,
        base__eos_ids=[2, None],
        artifacts__0__sha256="xyz",
        artifacts__1__size=True,
        methods__0__program=None,
        options=[],
        versions__torch=2,
        surprise=1,
    )
    with pytest.raises(BundleError) as caught:
        loads(data, "bundles/x/manifest.json")
    assert {problem.where.removeprefix("bundles/x/manifest.json: ") for problem in caught.value.problems} == {
        "backend",
        "base.name",
        "base.layers[1].in_features",
        "base.layers[0].has_bias",
        "base.eos_ids",
        "artifacts[0].sha256",
        "artifacts[1].size",
        "methods[0].program",
        "options",
        "versions.torch",
        "surprise",
    }


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a\\b", "C:/x", "", "manifest.json", ".lora-core/lock", "a/"],
)
def test_a_path_out_of_the_bundle_or_into_lora_cores_own_files_is_refused(path):
    with pytest.raises(BundleError, match="artifacts"):
        loads(broken(artifacts__0__path=path), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods__0__program": "gone.pte"}, "gone.pte"),
        ({"methods__1__adapter": "nobody"}, "nobody"),
        ({"artifacts__0__adapter": "nobody"}, "nobody"),
        ({"artifacts__0__path": "pirate.pte"}, "more than once"),
        ({"methods__1__name": "forward"}, "more than once"),
        ({"adapters__0__plan": 5}, "plan 5"),
        ({"prompting__tokenizer": "gone.json"}, "gone.json"),
        ({"adapters__0__prompting__chat_templates__default": "gone.jinja"}, "gone.jinja"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(BundleError, match=message):
        loads(broken(**changes), "manifest.json")


def test_a_newer_schema_is_refused_and_says_what_to_do():
    with pytest.raises(BundleError, match=r"schema version 5.*reads up to 4.*Update lora-core"):
        loads(broken(schema_version=SCHEMA_VERSION + 1, backend=KeyError, new_field=[]), "manifest.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"schema_version": 1}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(BundleError, match="manifest"):
        loads(data, "manifest.json")


@pytest.mark.parametrize("value", [Path("x"), {1: "x"}, float("nan"), float("inf"), {"a": {"b"}}])
def test_what_is_not_plain_data_cannot_be_written(value):
    with pytest.raises(LoraCoreError, match=r"detail\.odd"):
        dumps(attrs.evolve(SAMPLE, detail={"odd": value}))


def test_reading_a_manifest_and_removing_an_adapter_import_nothing_slow():
    code = (
        "import sys, lora_core.bundle.store, lora_core.bundle.transaction, lora_core.pipeline.remove\n"
        "slow = {'torch', 'cattrs', 'jsonschema', 'executorch', 'safetensors', 'asyncio', 'numpy'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"
