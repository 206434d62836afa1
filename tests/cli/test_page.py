"""The page about a bundle: complete, self-contained, safe."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from tests.cli.shell import Shell

VOID = {"meta", "rect", "br"}


class Page(HTMLParser):
    """Collects texts and attributes, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID - {"rect"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_page_tells_of_every_file_method_and_adapter(shell: Shell) -> None:
    outcome = shell.run("inspect", "bundle", "--html", "page.html")
    assert outcome.code == 0, outcome
    assert outcome.out == "page.html\n"
    page = Page((shell.directory / "page.html").read_text("utf-8"))
    facts = json.loads(shell.run("inspect", "bundle", "--json").out)
    for expected in (
        *(file["path"] for file in facts["files"]),
        *(method["name"] for method in facts["methods"]),
        *(group["name"] for group in facts["sharing"]["groups"]),
    ):
        assert expected in page.texts
    assert facts["foundation"] in page.texts


def test_page_refers_to_nothing_outside_itself(shell: Shell) -> None:
    assert shell.run("inspect", "bundle", "--html", "page.html").code == 0
    text = (shell.directory / "page.html").read_text("utf-8")
    assert [each for each in Page(text).attributes if each[1] in ("src", "href")] == []
    assert "http" not in text
    assert "url(" not in text


def test_names_from_a_bundle_cannot_become_markup(shell: Shell) -> None:
    manifest = shell.directory / "bundle" / "manifest.json"
    data = json.loads(manifest.read_text("utf-8"))
    data["base"]["name"] = "<script>alert(1)</script>"
    manifest.write_text(json.dumps(data), encoding="utf-8")
    shell.run("inspect", "bundle", "--html", "page.html")
    text = (shell.directory / "page.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
