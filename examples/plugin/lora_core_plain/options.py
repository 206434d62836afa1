"""Options of an export; each field becomes an option of `lora-core export --backend plain`."""

import attrs


@attrs.frozen(kw_only=True)
class PlainOptions:
    dtype: str = attrs.field(
        default="float32",
        validator=attrs.validators.in_(("float32", "float16")),
        metadata={"help": "Type of the stored base.", "choices": ("float32", "float16")},
    )
