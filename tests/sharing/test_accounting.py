"""What is stored belongs to something that was told, or the proof fails, whatever a plugin says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Manifest, Method
from lora_core.layers import ModelSummary
from lora_core.prompting import Prompting
from lora_core.sharing.accounting import PADDING, unaccounted_problems
from lora_core.sharing.blobs import Blob, FilePart

BASE = np.random.default_rng(0).bytes(200_000)
Files = dict[str, bytes]


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[..., Bundle]:
    """Return a bundle with these files; one called `a...` belongs to adapter a."""

    def make(files: Files, **manifest: object) -> Bundle:
        artifacts = []
        for path, data in files.items():
            (tmp_path / path).write_bytes(data)
            owner = "a" if path.startswith("a") else None
            artifacts.append(Artifact(path=path, role="data", sha256="0" * 64, size=len(data), adapter=owner))
        fields = {
            "backend": "any",
            "base": ModelSummary(name="m", family="llama", layers=(), module_names=()),
            "policy": {},
            "foundation": "0" * 64,
            "plans": (),
            "options": {},
            "versions": {},
            "artifacts": tuple(artifacts),
            "adapters": (BundledAdapter(name="a", digest="0", foundation="0" * 64, rank=1, modules=1),),
            "methods": (Method(name="forward", program="base"), Method(name="a", program="base", adapter="a")),
        }
        return Bundle(path=tmp_path, manifest=Manifest(**{**fields, **manifest}))

    return make


def blob(file: str, offset: int, size: int, *methods: str) -> Blob:
    return Blob(key="k", file=file, offset=offset, size=size, sha256="1" * 64, methods=frozenset(methods))


STORED = blob("base", 16, len(BASE), "forward", "a")
HEADER = FilePart(file="base", offset=0, size=16, what="header")


def told(bundle: Bundle, blobs: list[Blob], parts: list[FilePart] | None) -> list[str]:
    return [problem.what for problem in unaccounted_problems(bundle, blobs, parts)]


def test_blobs_parts_and_aligning_zeros_are_all_there_is(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE + bytes(100)})
    assert told(bundle, [STORED], [HEADER]) == []


@pytest.mark.parametrize("extra", [b"x", bytes(PADDING), BASE], ids=["a byte", "a page of zeros", "a base"])
def test_bytes_of_no_part_are_told_with_their_place(bundle_of, extra):
    bundle = bundle_of({"base": b"h" * 16 + BASE + extra})
    (what,) = told(bundle, [STORED], [HEADER])
    place = f"{len(extra)} bytes of 'base', from byte {16 + len(BASE)} on"
    assert what == f"{place}, are in no tensor and no known part of it"


def test_a_file_that_nothing_refers_to_is_told(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE, "spare": b"some"})
    (what,) = told(bundle, [STORED], [HEADER])
    assert what.startswith("4 bytes of 'spare', from byte 0 on")


def test_a_copy_of_the_base_in_an_adapters_file_is_told_of_a_plugin_that_tells_no_parts(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE, "a": BASE[::-1]})
    (what,) = told(bundle, [STORED], None)
    assert what.startswith("'a' holds 20")
    assert what.endswith("bytes (compressed) that are in no tensor: more than headers and a graph need")


def test_a_copy_of_the_base_is_no_program_whatever_a_plugin_calls_it(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE, "a": BASE[::-1]})
    (what,) = told(bundle, [STORED], [HEADER, FilePart(file="a", offset=0, size=len(BASE), what="program")])
    assert what.startswith("'a' holds 20")


def test_a_large_graph_of_little_content_is_no_base(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE, "a": b"add mul " * 100_000})
    assert told(bundle, [STORED], None) == []


def test_tensors_that_no_method_reads_are_told(bundle_of):
    bundle = bundle_of({"base": b"h" * 16 + BASE})
    unread = blob("base", 16 + 1000, len(BASE) - 1000)
    assert told(bundle, [blob("base", 16, 1000, "forward", "a"), unread], [HEADER]) == [
        f"{len(BASE) - 1000} bytes of tensors in 'base' are read by no method"
    ]


def test_text_is_known_to_the_core_if_a_prompting_names_it(bundle_of):
    text = bundle_of({"base": b"h" * 16 + BASE, "words": b"{}"}, prompting=Prompting(tokenizer="words"))
    assert told(text, [STORED], [HEADER]) == []


def test_a_copy_that_was_asked_for_is_compared_and_not_weighed(bundle_of):
    files = {"base": b"h" * 16 + BASE, "a": BASE}
    copy = FilePart(file="a", offset=0, size=len(BASE), what="copy", copy_of=("base", 16))
    assert told(bundle_of(files), [STORED], [HEADER, copy]) == []
    (what,) = told(bundle_of({**files, "a": BASE[::-1]}), [STORED], [HEADER, copy])
    assert what.startswith(f"{len(BASE)} bytes of 'a', from byte 0 on")
