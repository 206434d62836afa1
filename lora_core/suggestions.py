"""What to say when a name is not known: the nearest names, and the choices."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `name` most likely meant, or None."""
    import difflib  # only when something is misspelt

    known = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return known[found[0]] if found else None


def did_you_mean(name: str, choices: Iterable[str], *, nothing: str = "There are none.") -> str:
    """Return the remedy for an unknown `name`: the likely choice first, then all of them (`nothing` if empty)."""
    listed = list(choices)
    if not listed:
        return nothing
    guess = nearest(name, listed)
    hint = f"Did you mean {guess!r}? " if guess is not None else ""
    return f"{hint}Choices: {', '.join(listed)}."
