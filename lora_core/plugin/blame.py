"""Turn a foreign exception inside a plugin into one that names the plugin and its distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lora_core.errors import LoraCoreError, PluginError, StorageError
from lora_core.plugin.registry import Origin


@contextmanager
def blaming(what: str, origin: Origin, *, remedy: str = "") -> Iterator[None]:
    """Run a block of a plugin's code; `what` says which ("export of backend 'coreml'").

    Errors of our own tree pass. `OSError` becomes `StorageError`; running out of memory passes, as it is the machine's
    fault; anything else becomes `PluginError` with the foreign exception as its cause.
    """
    try:
        yield
    except (LoraCoreError, MemoryError):
        raise
    except OSError as error:
        raise StorageError(f"{_told(error)} during {what} ({origin.distribution})") from error
    except Exception as error:
        raise PluginError(
            f"{what[:1].upper()}{what[1:]} failed in {origin}: {_told(error)}",
            remedy=remedy
            or f"This is a defect of {origin.distribution} or of something it uses; please report it there.",
        ) from error


def _told(error: BaseException) -> str:
    """Return the exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
