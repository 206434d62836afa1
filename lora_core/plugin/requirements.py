"""Compare the distributions that a backend was proven on with those installed."""

from __future__ import annotations

from lora_core.errors import Problem
from lora_core.specs import BackendSpec


def missing(spec: BackendSpec) -> tuple[Problem, ...]:
    """Return a problem for each distribution in `spec.requires` that is not installed, or in another version.

    A required version "2.13" also accepts "2.13.4" and "2.13+cpu"; an empty one accepts any.
    """
    problems = []
    for distribution, wanted in spec.requires.items():
        have = installed(distribution)
        if have is None or not _accepts(wanted, have):
            state = "which is not installed" if have is None else f"but {have} is installed"
            needed = f"{distribution} {wanted}".strip()
            problems.append(Problem(what=f"Backend {spec.name!r} needs {needed}, {state}", remedy=spec.install_hint))
    return tuple(problems)


def installed(distribution: str) -> str | None:
    """Return the installed version of `distribution`, or None."""
    from importlib.metadata import PackageNotFoundError, version  # takes long; most commands do without

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _accepts(wanted: str, have: str) -> bool:
    have = have.partition("+")[0]
    return not wanted or have == wanted or have.startswith(f"{wanted}.")
