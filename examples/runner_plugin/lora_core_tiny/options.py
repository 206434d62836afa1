"""Options of an export; each field becomes an option of `lora-core export --backend tiny`."""

import attrs


@attrs.frozen(kw_only=True)
class TinyOptions:
    max_context_len: int = attrs.field(
        default=512,
        validator=attrs.validators.ge(1),
        metadata={"help": "Tokens that fit into the cache of keys and values."},
    )
