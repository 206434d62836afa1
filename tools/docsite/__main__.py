"""`python -m docsite`: build the site into `build/site`, warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

from docsite.api import ROOT
from docsite.staging import stage


def main() -> int:
    """Stage and build; return Sphinx's exit code."""
    from sphinx.cmd.build import main as build

    staged, site = ROOT / "build/docs-staged", ROOT / "build/site"
    stage(staged)
    words = ["-b", "html", "-c", str(Path(__file__).parent), "-d", str(ROOT / "build/docs-trees"), "--fresh-env"]
    return int(build([*words, "--fail-on-warning", "--keep-going", "--quiet", str(staged), str(site)]) or 0)


if __name__ == "__main__":
    sys.exit(main())
