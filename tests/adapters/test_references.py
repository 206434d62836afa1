"""How adapters are named on the command line, and what is read for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.names import RESERVED, name_problem, name_problems, safe_name
from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.reading import AdapterReference, CompositePart, parse_references, read_adapters
from lora_core.errors import AdapterError, UsageError
from lora_core.specs import ReservedNames
from tests.adapters.toy import base_of, deltas, made, tensors_of, write
from tests.numeric import apart, tolerance

BASE = base_of()
FORMATS: list[AdapterFormat] = [PeftFormat()]


def _reference(name: str, **fields: object) -> AdapterReference:
    return AdapterReference(name=name, **fields)  # type: ignore[arg-type]


PARSED: dict[str, AdapterReference] = {
    "pirate=adapters/pirate": _reference("pirate", directory=Path("adapters/pirate")),
    "pirate=pirate": _reference("pirate", directory=Path("pirate")),
    "p=a@0.5": _reference("p", directory=Path("a"), strength=0.5),
    "p=a@-2": _reference("p", directory=Path("a"), strength=-2.0),
    "p=a@.5": _reference("p", directory=Path("a"), strength=0.5),
    "p=a@v2": _reference("p", directory=Path("a@v2")),
    "p=runs/a@2/": _reference("p", directory=Path("runs/a@2")),
    "p=a@2@0.5": _reference("p", directory=Path("a@2"), strength=0.5),
    "p=a=b": _reference("p", directory=Path("a=b")),
    "p = a ": _reference("p", directory=Path("a")),
    "p=w.safetensors,c.json": _reference("p", weights=Path("w.safetensors"), config=Path("c.json")),
    "p=w.safetensors,c.json@2": _reference("p", weights=Path("w.safetensors"), config=Path("c.json"), strength=2.0),
    "p=a,b": _reference("p", directory=Path("a,b")),
    "m=x:0.7+y:0.3": _reference("m", parts=(CompositePart(of="x", strength=0.7), CompositePart(of="y", strength=0.3))),
    "m=x:0.7+y:-0.3@0.5": _reference(
        "m", parts=(CompositePart(of="x", strength=0.7), CompositePart(of="y", strength=-0.3)), strength=0.5
    ),
    "m=x+y": _reference("m", parts=(CompositePart(of="x"), CompositePart(of="y"))),
    "m=x+y:2": _reference("m", parts=(CompositePart(of="x"), CompositePart(of="y", strength=2.0))),
    "m=x:0.7": _reference("m", parts=(CompositePart(of="x", strength=0.7),)),
    "m=a/x:0.7+./y:0.3": _reference(
        "m", parts=(CompositePart(of="a/x", strength=0.7), CompositePart(of="./y", strength=0.3))
    ),
    "m=a/x:0.7+y:0.3": _reference(
        "m", parts=(CompositePart(of="a/x", strength=0.7), CompositePart(of="y", strength=0.3))
    ),
    "m=./x+y": _reference("m", directory=Path("x+y")),
    "p=a@1e-2": _reference("p", directory=Path("a"), strength=0.01),
    "p=a@-1.5E+2": _reference("p", directory=Path("a"), strength=-150.0),
    "p=a@+1": _reference("p", directory=Path("a"), strength=1.0),
    "m=x:+0.5+y:1": _reference("m", parts=(CompositePart(of="x", strength=0.5), CompositePart(of="y"))),
    "m=x:1e+2+y:-1e-2@2e0": _reference(
        "m", parts=(CompositePart(of="x", strength=100.0), CompositePart(of="y", strength=-0.01)), strength=2.0
    ),
    "m=a/x:1e1+y:2": _reference(
        "m", parts=(CompositePart(of="a/x", strength=10.0), CompositePart(of="y", strength=2.0))
    ),
    "m=a/x+b/y": _reference("m", directory=Path("a/x+b/y")),
}


@pytest.mark.parametrize("text", PARSED, ids=str)
def test_reference_means_what_its_documentation_says(text: str) -> None:
    assert AdapterReference.from_text(text) == PARSED[text]


# Directories of names that look like something else, and what is meant once they are there.
EXISTING: dict[str, tuple[str, AdapterReference]] = {
    "p=v@2": ("v@2", _reference("p", directory=Path("v@2"))),
    "p=v@2@0.5": ("v@2", _reference("p", directory=Path("v@2"), strength=0.5)),
    "p=odd/run_12:30": ("odd/run_12:30", _reference("p", directory=Path("odd/run_12:30"))),
    "p=x:1+y:2": ("x:1+y:2", _reference("p", directory=Path("x:1+y:2"))),
    "p=x+y": ("x+y", _reference("p", directory=Path("x+y"))),
    "p=w.safetensors,c.json": ("w.safetensors,c.json", _reference("p", directory=Path("w.safetensors,c.json"))),
    "p=model.bin": ("model.bin", _reference("p", directory=Path("model.bin"))),
    "m=odd/run_12:30:0.5+x:1": (
        "odd/run_12:30",
        _reference("m", parts=(CompositePart(of="odd/run_12:30", strength=0.5), CompositePart(of="x"))),
    ),
    "m=x:1+./a+b:2": (
        "a+b",
        _reference("m", parts=(CompositePart(of="x"), CompositePart(of="./a+b", strength=2.0))),
    ),
}


@pytest.mark.parametrize("text", EXISTING, ids=str)
def test_an_existing_directory_is_that_directory(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, meant = EXISTING[text]
    monkeypatch.chdir(tmp_path)
    Path(directory).mkdir(parents=True)
    assert AdapterReference.from_text(text) == meant


REFUSED: dict[str, str] = {
    "pirate": "is not an adapter",
    "=dir": "is not an adapter",
    "pirate=": "is not an adapter",
    "": "is not an adapter",
    "my-pirate=dir": "cannot be an adapter's name.*'my_pirate'",
    "base=dir": "reserved",
    "p=w.safetensors": "given as one file, 'w.safetensors'.*both or neither",
    "p=c.json": "given as one file, 'c.json'",
    "p=w.safetensors,": "given as one file",
    "p=,c.json": "given as one file",
    "m=x:0.5+x:0.5": "names x more than once",
    f"p=a@{10**400}": "not a finite number",
    f"m=x:1+y:{10**400}": "not a finite number",
    "p=a@1e999": "not a finite number",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_reference_that_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[text]):
        AdapterReference.from_text(text)


def test_problems_of_all_references_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        parse_references(["base=a", "good=b", "bad", "x=w.safetensors"])

    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["a", "Pirate", "v2_final", "x" * 64, "gets", "backward", "user"])
def test_name_is_good(name: str) -> None:
    assert name_problem(name) is None


BAD_NAMES = ["", "1a", "_a", "a-b", "a b", "a.b", "a/b", "../a", "é", "x" * 65, "a\n", "a:b", "BASE", "Con", "LPT1"]
BAD_NAMES += RESERVED
KEPT = ReservedNames(names=frozenset({"forward"}), beginnings=("get_",), endings=("_weights",))


@pytest.mark.parametrize("name", sorted(BAD_NAMES), ids=repr)
def test_bad_name_is_refused_with_one_that_would_do(name: str) -> None:
    problem = name_problem(name)

    assert problem is not None
    assert repr(safe_name(name)) in problem.remedy
    assert name_problem(safe_name(name)) is None


@pytest.mark.parametrize("name", ["forward", "Forward", "get_x", "x_weights"])
def test_name_that_a_backend_keeps_for_itself_is_refused_for_that_backend_alone(name: str) -> None:
    problem = name_problem(name, KEPT)

    assert name_problem(name) is None
    assert problem is not None
    assert name_problem(safe_name(name, KEPT), KEPT) is None


def test_names_must_differ_by_more_than_case() -> None:
    twice, taken = name_problems(["a", "A", "b"], taken=["B"])

    assert "'A' is given twice (as 'a'" in twice.what
    assert "'b' is already in the bundle (as 'B'" in taken.what


def test_references_are_read_in_their_order(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", BASE, "q_proj"), made(tmp_path / "two", BASE, "v_proj", "up_proj", seed=1)
    files = f"{tmp_path}/two/adapter_model.safetensors,{tmp_path}/two/adapter_config.json"

    texts = ["mix=b:0.7+a:0.3@2", f"b={files}", f"a={tmp_path}/one@0.5", f"both={tmp_path}/one:1+{tmp_path}/two:-1"]
    mix, b, a, both = read_adapters(parse_references(texts), BASE, FORMATS)

    assert [adapter.name for adapter in (mix, b, a, both)] == ["mix", "b", "a", "both"]
    module = "model.layers.1.self_attn.q_proj"
    folded = tolerance(2)  # a strength is folded into B: each of two products is rounded once
    assert apart(deltas(a)[module], 0.5 * deltas(one)[module]) <= folded
    assert apart(deltas(mix)[module], 2 * 0.3 * 0.5 * deltas(one)[module]) <= folded
    module = "model.layers.0.mlp.up_proj"
    assert apart(deltas(mix)[module], 2 * 0.7 * deltas(two)[module]) <= folded
    assert apart(deltas(both)[module], -deltas(two)[module]) <= folded


def test_directory_and_files_give_the_same_adapter(tmp_path: Path) -> None:
    made(tmp_path / "one", BASE, "q_proj")
    files = f"{tmp_path}/one/adapter_model.safetensors,{tmp_path}/one/adapter_config.json"

    first, second = read_adapters(parse_references([f"a={tmp_path}/one", f"b={files}"]), BASE, FORMATS)

    assert first.digest == second.digest
    assert first.updates == second.updates


def test_strength_changes_the_digest(tmp_path: Path) -> None:
    made(tmp_path / "one", BASE, "q_proj")
    texts = [f"a={tmp_path}/one", f"b={tmp_path}/one@0.5", f"c={tmp_path}/one@0.25", f"d={tmp_path}/one@1.0"]

    a, b, c, d = (adapter.digest for adapter in read_adapters(parse_references(texts), BASE, FORMATS))

    assert len({a, b, c}) == 3
    assert a == d


def test_problems_of_all_adapters_are_reported_together(tmp_path: Path) -> None:
    good = tensors_of(BASE, "q_proj", "v_proj")
    write(tmp_path / "qalora", good, use_qalora=True)
    write(tmp_path / "stray", good | {"stray": np.ones(2, np.float32)})
    texts = [f"a={tmp_path}/qalora", f"b={tmp_path}/stray", f"c={tmp_path}/none", f"m={tmp_path}/qalora:1+a:1"]

    with pytest.raises(AdapterError) as caught:
        read_adapters(parse_references(texts), BASE, FORMATS)

    text = str(caught.value)
    assert all(
        words in text
        for words in ("'a': It uses QA-LoRA", "'b': Nothing uses", "'c': There is no such", "'m': It uses")
    )


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a=x", "a=y"], "'a' is given twice"),
        (["used=x"], "'used' is already in the bundle"),
        (["m=x:0.5+y:0.5", "x=x"], "names 'y', which is not given in this command"),
        (["m=used:0.5"], "names 'used', which is not given in this command"),
        (["m=n:0.5", "n=m:0.5"], "'n', which is a composite itself"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_read(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_adapters(parse_references(texts), BASE, FORMATS, taken=["used"])


def test_directory_without_adapter_says_where_one_is(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "checkpoint_9", BASE, "q_proj")
    (tmp_path / "file").write_text("")
    texts = [f"a={tmp_path}/runs", f"b={tmp_path}/nowhere", f"c={tmp_path}/file"]

    with pytest.raises(AdapterError) as caught:
        read_adapters(parse_references(texts), BASE, FORMATS)

    a, b, c = caught.value.problems
    assert a.remedy == f"Did you mean {tmp_path}/runs/checkpoint_9?"
    assert "no such directory" in b.what
    assert "file" in c.what


def test_thousands_of_adapters_need_no_open_files(tmp_path: Path) -> None:
    made(tmp_path / "one", BASE, "q_proj")
    count = len(list(Path("/proc/self/fd").iterdir()))

    adapters = read_adapters([_reference(f"a{i}", directory=tmp_path / "one") for i in range(200)], BASE, FORMATS)

    assert len(adapters) == 200
    assert len(list(Path("/proc/self/fd").iterdir())) == count
