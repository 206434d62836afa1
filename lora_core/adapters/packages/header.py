"""What a package says of itself: the metadata of its safetensors file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Self

import attrs

from lora_core.adapters.names import name_problem
from lora_core.adapters.ordering import natural_key

FORMAT = "lora-core package"
VERSION = 1
"""Of the format; a file of a newer one is refused."""
SUFFIX = ".lora"
_SCALING = "scaling"
_NUMBER = re.compile(r"-?0x[01](\.[0-9a-f]+)?p[+-][0-9]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PROMPTING = "prompting/"


class NewerPackageError(ValueError):
    """A package whose format this lora-core does not know yet."""


@attrs.frozen(kw_only=True)
class PackageHeader:
    """The fields of a package.

    `name` is the adapter's, `adapter` the digest of what it was read from. `foundation` is the fingerprint of the base
    that it was packed for, `template` and `plan` are the digests of the template and of the slot plan that it uses.
    `scalings` are by (module, kind). `prompting` is what the adapter's manifest entry says of prompts (chat template,
    end of text), each as text.
    """

    name: str
    adapter: str
    foundation: str
    template: str
    plan: str
    scalings: Mapping[tuple[str, str], float]
    base_model: str | None = None
    prompting: Mapping[str, str] = attrs.field(factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return the fields as text; scalings as `float.hex`, the one most updates have under a key of its own."""
        usual = _most_common(self.scalings)
        fields = {
            "format": FORMAT,
            "version": str(VERSION),
            "name": self.name,
            "adapter": self.adapter,
            "foundation": self.foundation,
            "template": self.template,
            "plan": self.plan,
            _SCALING: usual.hex(),
        }
        if self.base_model is not None:
            fields["base_model"] = self.base_model
        for (module, kind), scaling in self.scalings.items():
            if scaling != usual:
                fields[f"{_SCALING}/{module}/{kind}"] = scaling.hex()
        return fields | {f"{_PROMPTING}{name}": text for name, text in self.prompting.items()}

    @classmethod
    def from_metadata(cls, fields: Mapping[str, str], updates: list[tuple[str, str]]) -> Self:
        """Read what `to_metadata` gave; `updates` are the (module, kind) of the file's tensors.

        `require_known` has accepted the fields. Raises `ValueError` saying what is wrong.
        """
        left = {key: text for key, text in fields.items() if key not in ("format", "version", *SEALED)}

        def take(key: str, form: re.Pattern[str] | None = None) -> str:
            text = left.pop(key, None)
            if text is None or (form is not None and not form.fullmatch(text)):
                raise ValueError(f"its field {key!r} is {'missing' if text is None else repr(text)}")
            return text

        usual = take(_SCALING, _NUMBER)
        texts = {each: left.pop(f"{_SCALING}/{each[0]}/{each[1]}", usual) for each in updates}
        header = cls(
            name=take("name"),
            adapter=take("adapter", _SHA256),
            foundation=take("foundation", _SHA256),
            template=take("template", _SHA256),
            plan=take("plan", _SHA256),
            scalings={each: _number(text) for each, text in texts.items()},
            base_model=left.pop("base_model", None),
            prompting={key.removeprefix(_PROMPTING): left.pop(key) for key in [*left] if key.startswith(_PROMPTING)},
        )
        if left:
            raise ValueError(f"nothing uses its fields {', '.join(sorted(left))}")
        if (problem := name_problem(header.name)) is not None:
            raise ValueError(problem.what)
        return header


SEALED = ("digest", "signature", "signer")
"""Fields that `lora_core.adapters.packages.seal` writes and reads."""


def require_known(fields: Mapping[str, str]) -> None:
    """Raise `ValueError` unless `fields` are those of a package, `NewerPackageError` if it is of a newer version."""
    if fields.get("format") != FORMAT:
        raise ValueError("it is not an adapter package")
    text = fields.get("version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"its version is {text!r}")
    if int(text) > VERSION:
        raise NewerPackageError(f"it has version {text}; this lora-core reads up to {VERSION}")


def _most_common(scalings: Mapping[tuple[str, str], float]) -> float:
    counts: dict[float, int] = {}
    for key in sorted(scalings, key=lambda each: (natural_key(each[0]), each[1])):
        counts[scalings[key]] = counts.get(scalings[key], 0) + 1
    return max(counts, key=counts.__getitem__, default=1.0)


def _number(text: str) -> float:
    try:
        value = float.fromhex(text) if _NUMBER.fullmatch(text) else math.nan
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"the scaling {text!r} is no finite number")
    return value
