"""Whatever kills a link and whenever, the bundle is the old one or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash.py"


def test_sixty_links_killed_at_random_instants_leave_old_or_new_bundles_and_nothing_else():
    ran = subprocess.run([sys.executable, str(SCRIPT), "60"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert sum(found["states"]) == found["kills"] == 60
    assert sum(count > 0 for count in found["states"]) >= 3
    assert found["killed_during_a_change"] > 20
