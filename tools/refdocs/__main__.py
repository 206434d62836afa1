"""`python -m refdocs`: write the reference pages and the listings of the tutorials."""

from __future__ import annotations

from refdocs.made import write
from refdocs.projects import ROOT

for path in write():
    print(f"wrote {path.relative_to(ROOT)}")
