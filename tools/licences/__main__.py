"""`python -m licences`: list the licence of every distribution that ours need, and fail for one that is not known."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

OURS = (
    "lora-core",
    "lora-core-xnnpack",
    "lora-core-coreml",
    "lora-core-qnn-sim",
    "lora-core-onnx",
    "lora-core-ray",
    "lora-core-transformers",
)
EXTRAS = ("download", "gguf", "models", "remote", "signing", "testing", "verify")
PERMISSIVE = re.compile(
    r"\b(mit|bsd|apache|isc|psf|python software foundation|python-2\.0|mpl|mozilla|hpnd|unlicense|zlib|cc0|0bsd|"
    r"public domain)\b",
    re.IGNORECASE,
)
"""Licences under which everything that we need may be used and passed on; MPL, as long as its files stay its own."""
_TEXTS = {
    "BSD, by its text": "Redistribution and use in source and binary forms, with or without modification",
    "MIT, by its text": "Permission is hereby granted, free of charge, to any person obtaining a copy",
}
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def needed() -> dict[str, Distribution]:
    """Return every distribution that ours need on this machine, with all their extras, by normalized name."""
    found: dict[str, Distribution] = {}
    pending = list(OURS)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        pending += _requirements(found[name], extras=name in OURS)
    return dict(sorted((name, each) for name, each in found.items() if name not in OURS))


def _requirements(of: Distribution, *, extras: bool) -> Iterator[str]:
    for requirement in of.requires or []:
        optional = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
        if optional is None or (extras and optional[1] in EXTRAS):
            match = _NAME.match(requirement)
            if match:
                yield match[0]


def licence(of: Distribution) -> str:
    """Return what a distribution says of its licence: an expression, classifiers, a word, or the text it comes with."""
    expression = of.metadata.get("License-Expression")
    classifiers = [each for each in of.metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    text = (of.metadata.get("License") or "").strip().splitlines()
    said = expression or ", ".join(each.rpartition(" :: ")[2] for each in classifiers) or (text[0] if text else "")
    return said or next((name for name, words in _TEXTS.items() if words in " ".join(_files(of).split())), "")


def _files(of: Distribution) -> str:
    """Return the licence texts that a distribution comes with."""
    named = [each for each in of.files or [] if re.search(r"\.dist-info/.*licen[cs]e", str(each), re.IGNORECASE)]
    return "\n".join(each.read_text() for each in named)


def main() -> int:
    """Print the table; return 1 if a licence is not one that we know."""
    unknown = []
    print("| distribution | version | licence |\n|---|---|---|")
    for name, each in needed().items():
        said = licence(each)
        print(f"| {name} | {each.version} | {said or '?'} |")
        if not PERMISSIVE.search(said):
            unknown.append(f"{name}: {said or 'it does not say'}")
    if unknown:
        print("\nLook at these by hand:\n" + "\n".join(f"- {each}" for each in unknown), file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
