"""The page about a bundle: complete, correct and readable without anything outside itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

from lora_core.errors import Problem
from lora_core.html.page import render, write_page
from lora_core.pipeline.inspect import InspectReport
from lora_core.sharing.blobs import Blob
from lora_core.sharing.report import SharingReport

NUMBERS = {
    "positions": 8,
    "spread": 4.0,
    "max_error": 0.0125,
    "mean_error": 0.001,
    "kl": 0.0042,
    "max_kl": 0.01,
    "top1": 0.9375,
    "greedy": 0.5,
}
VERIFIED = {
    "passed": True,
    "reference": "transformers 5 + peft 0.21, float32",
    "limits": {"reason": "4-bit weights."},
    "methods": [
        {"method": "forward", "adapter": None, "numbers": NUMBERS, "effect": None},
        {
            "method": "loud",
            "adapter": "loud",
            "numbers": None,
            "effect": {"ratio": 1.25, "direction": 0.75, "size": 1.0},
        },
    ],
    "findings": [
        {"check": "hashes", "subject": "bundle", "outcome": "passed", "detail": "3 files"},
        {"check": "logits", "subject": "loud", "outcome": "unchecked", "detail": "no source"},
    ],
}
SPEED = {
    "prompt_tokens": 8,
    "prefill_seconds": 0.02,
    "step_seconds": 0.01,
    "prefill_tokens_per_second": 400.0,
    "decode_tokens_per_second": 100.0,
}
LOAD = {"seconds": 0.5, "resident": 3_000_000, "anonymous": 1_000_000, "file_backed": 2_000_000}
MEASURED = {
    "facts": {"runtime": "ExecuTorch"},
    "memory_before": {"resident": 900_000, "anonymous": 500_000, "file_backed": 400_000, "detailed": True},
    "loads": [{"adapter": None, **LOAD}, {"adapter": "loud", **LOAD}],
    "base_alone": {"adapter": None, "overhead": None, **SPEED},
    "methods": [{"adapter": None, "overhead": None, **SPEED}, {"adapter": "loud", "overhead": 0.0625, **SPEED}],
    "switch": {"same": 0.01, "changed": 0.0125, "seconds": 0.0025},
}
VOID = {"meta"}


@attrs.define
class Element:
    name: str
    attributes: dict[str, str]


class Page(HTMLParser):
    """Reads a page, and checks that every element is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))

    def named(self, name: str) -> list[Element]:
        return [element for element in self.elements if element.name == name]


@pytest.fixture
def report(bundle) -> InspectReport:
    methods = frozenset({"forward", "loud"})
    blobs = [
        Blob(key="w", file="foundation.ptd", offset=0, size=80_000, sha256="1", methods=methods, group="linear"),
        Blob(key="n", file="foundation.ptd", offset=80_000, size=9_000, sha256="2", methods=methods, group="norms"),
        Blob(key="l", file="loud.pte", offset=0, size=1_000, sha256="3", methods=frozenset({"loud"}), group="lora"),
    ]
    return InspectReport(
        bundle=bundle, sharing=SharingReport.from_blobs(blobs, {name: name for name in sorted(methods)}), problems=()
    )


def test_the_page_tells_of_files_methods_adapters_and_fingerprints(report):
    texts = Page(render(report, {})).texts
    manifest = report.bundle.manifest
    for expected in (
        "Tiny-1B for xnnpack",
        manifest.foundation,
        *(file.path for file in manifest.artifacts),
        *(file.sha256 for file in manifest.artifacts),
        *(method.name for method in manifest.methods),
        *(adapter.digest for adapter in manifest.adapters),
        "files intact",
        "not verified",
        "not benchmarked",
    ):
        assert expected in texts


def test_the_page_shows_what_is_shared_in_figures(report):
    texts = Page(render(report, {})).texts
    assert "89.0 kB" in texts  # what both methods read
    assert "1.0 kB" in texts  # what one method reads alone
    assert "179.0 kB" in texts  # separate exports: 89 for the base, 90 with the adapter


def test_the_page_shows_the_numbers_of_verify(report):
    texts = Page(render(report, {"verify": VERIFIED})).texts
    for expected in ("0.0125", "0.0042", "93.8%", "50.0%", "1.25", "0.75", "not compared", "no source"):
        assert expected in texts
    assert "verified, but for 1 checks" in texts
    assert "not verified" not in texts
    assert any("transformers 5 + peft 0.21" in text for text in texts)


def test_a_failed_verification_cannot_be_overlooked(report):
    texts = Page(render(report, {"verify": {**VERIFIED, "passed": False}})).texts
    assert "verification failed" in texts


def test_the_page_shows_the_numbers_of_bench(report):
    texts = Page(render(report, {"bench": MEASURED})).texts
    for expected in ("base, nothing else loaded", "100 (+6.2% time)", "1.0 MB + 2.0 MB", "500.0 kB + 400.0 kB"):
        assert expected in texts
    assert any("the change costs 2.5 ms" in text for text in texts)


def test_problems_come_first(report):
    broken = attrs.evolve(report, problems=(Problem(what="'a' has another hash", where="a"),))
    texts = Page(render(broken, {})).texts
    assert "1 problems" in texts
    assert "'a' has another hash. (a)" in texts


def test_the_page_refers_to_nothing_outside_itself(report):
    text = render(report, {"verify": VERIFIED, "bench": MEASURED})
    page = Page(text)
    assert not [each for each in page.elements if {"src", "href", "srcset"} & set(each.attributes)]
    assert not [each for each in page.elements if each.name in ("script", "link", "iframe", "object", "img")]
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_can_be_read_without_seeing_it(report):
    page = Page(render(report, {"verify": VERIFIED, "bench": MEASURED}))
    assert page.named("html")[0].attributes["lang"] == "en"
    ids = {each.attributes["id"] for each in page.elements if "id" in each.attributes}
    for each in page.elements:
        assert set(each.attributes.get("aria-labelledby", "").split()) <= ids
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(each.attributes.get("scope") in ("col", "row") for each in page.named("th"))
    picture = next(each for each in page.named("svg"))
    assert picture.attributes["role"] == "img"
    assert picture.attributes["aria-labelledby"] == "map-title map-text"


def test_names_cannot_become_markup(report):
    name = "<script>alert(1)</script>"
    base = attrs.evolve(report.bundle.manifest.base, name=name)
    bundle = attrs.evolve(report.bundle, manifest=attrs.evolve(report.bundle.manifest, base=base))
    text = render(attrs.evolve(report, bundle=bundle), {})
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_page_is_written_with_the_reports_given(report, tmp_path):
    from lora_core.html.files import write_report

    write_report("verify", VERIFIED, report.bundle, tmp_path / "verify.json")
    write_page(report, tmp_path / "page.html", reports=[tmp_path / "verify.json"])
    assert "not compared" in Page((tmp_path / "page.html").read_text("utf-8")).texts


BROWSER = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
PROBE = f"<script>{Path(__file__).with_name('probe.js').read_text()}</script>"


def browse(page: Path, *options: str) -> Mapping[str, Any]:
    """Return what a real browser makes of `page`."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine: only the browser's part of the page's tests is left out")
    done = subprocess.run(
        [browser, *BROWSER, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_browser_shows_the_page(report, tmp_path, width, scheme):
    page = tmp_path / "page.html"
    page.write_text(render(report, {"verify": VERIFIED, "bench": MEASURED}).replace("</body>", f"{PROBE}</body>"))
    setting = {"light": "1", "dark": "0"}[scheme]
    seen = browse(page, f"--window-size={width},900", f"--blink-settings=preferredColorScheme={setting}")
    assert (sum(seen["ground"][:3]) < 150) == (scheme == "dark")
    assert seen["overflow"] == 0
    assert seen["resources"] == 0
    total = sum(seen["tiles"])
    assert [tile / total for tile in seen["tiles"]] == pytest.approx([80 / 90, 9 / 90, 1 / 90], rel=0.01)
    assert all(seen["labels"])
    assert seen["mapContrast"] >= 4.5  # WCAG 2.2, success criterion 1.4.3
    assert seen["contrast"] >= 4.5
