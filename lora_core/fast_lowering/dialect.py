"""ExecuTorch imported with the table of its edge dialect read by libyaml."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

from lora_core.fast_lowering.patching import Patches

_READER = "executorch.exir.dialects.edge._ops"


def import_executorch() -> None:
    """Import what every lowering needs of ExecuTorch, in less time than by itself.

    ExecuTorch 1.5.1 reads a table of 138 kB (`exir/dialects/edge/edge.yaml`) on import, with `ruamel.yaml`, which is
    written in Python where its C extension is not installed: a fifth of what importing all takes. PyYAML, which
    ExecuTorch needs too, reads the same from it with libyaml, if it was built with that. Drop when ExecuTorch does so.
    """
    if _READER in sys.modules:
        return
    import yaml

    with ExitStack() as stack:
        if hasattr(yaml, "CSafeLoader"):
            import ruamel.yaml

            Patches(stack).replace(ruamel.yaml, "YAML", _reader(ruamel.yaml.YAML, yaml))
        import executorch.exir.dialects.edge._ops  # noqa: F401


def _reader(slow: Any, yaml: Any) -> Any:
    class Reader(slow):  # type: ignore[misc]  # chosen at run time
        """Reads plain texts with libyaml, all else as it would be read."""

        def load(self, stream: Any) -> Any:
            if self.typ != ["safe"] or not isinstance(stream, str):
                return super().load(stream)
            loader = yaml.CSafeLoader(stream)
            try:
                return loader.get_single_data()
            finally:
                loader.dispose()

    return Reader
