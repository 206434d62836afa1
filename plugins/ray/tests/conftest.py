from __future__ import annotations

import os

# Clusters of the tests are on the loopback interface and live for seconds; Ray reads this once in a process.
os.environ["RAY_AUTH_MODE"] = "disabled"
