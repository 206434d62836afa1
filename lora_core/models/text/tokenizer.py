"""`tokenizer.json` as transformers uses it: its class, every added token, and neither padding nor cutting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import InputError
from lora_core.models.text.calling import require_bounded, tokenizing
from lora_core.models.text.classes import defaults, rebuilt, tokenizer_class
from lora_core.models.text.special_tokens import SpecialTokens, Token, read_special_tokens
from lora_core.models.text.stored import CONFIG, TOKENIZER, StoredText

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@attrs.frozen(kw_only=True)
class TokenizerDocument:
    """The bytes of a `tokenizer.json`, the special tokens that go with it by name, and the ids of those."""

    data: bytes
    special_tokens: Mapping[str, str]
    ids: Mapping[str, int]


def read_tokenizer(stored: StoredText, model_type: str | None) -> TokenizerDocument:
    """Read the tokenizer of `stored` for a model of `model_type`; its bytes are the file's own where nothing differs.

    Raises the error of `stored` for a file that `tokenizers` cannot read.
    """
    data = stored.read(TOKENIZER)
    document = stored.object(TOKENIZER)
    config = stored.object(CONFIG)
    chosen = tokenizer_class(config, document, model_type)
    special = read_special_tokens(stored, document)
    named = {**{name: text for name, text in defaults(chosen).items() if name not in config}, **special.named}
    ready = {**rebuilt(document, chosen, config), "padding": None, "truncation": None}
    if any(ready[key] != document.get(key) for key in ready):
        data = _dump(ready)
    return _completed(data, attrs.evolve(special, named=named), stored.where(TOKENIZER), stored.error)


def extend_tokenizer(data: bytes, named: Mapping[str, str], stored: StoredText) -> TokenizerDocument:
    """Read the tokens that `stored`, without a tokenizer.json of its own, adds to the one in `data`, which is ready to
    use and whose special tokens are `named`.
    """
    special = read_special_tokens(stored, json.loads(data))
    return _completed(data, attrs.evolve(special, named={**named, **special.named}), TOKENIZER, stored.error)


def _completed(data: bytes, special: SpecialTokens, where: str, error: type[InputError]) -> TokenizerDocument:
    """Return the document in `data` with every token of `special`."""
    tokenizer = parse_tokenizer(data, where, error)
    if _add(tokenizer, special):
        data = _dump({**json.loads(data), "added_tokens": json.loads(tokenizer.to_str())["added_tokens"]})
    named = special.named
    return TokenizerDocument(
        data=data,
        special_tokens=dict(sorted(named.items())),
        ids={name: known for name, text in named.items() if (known := tokenizer.token_to_id(text)) is not None},
    )


def compacted(data: bytes) -> bytes:
    """Return the same `tokenizer.json` without the white space between its tokens."""
    return json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":")).encode()


def parse_tokenizer(data: bytes, where: str, error: type[InputError]) -> Tokenizer:
    """Return the tokenizer in `data`, which neither pads nor cuts; raises `error`."""
    from tokenizers import Tokenizer

    with tokenizing(where, error, "The tokenizer cannot be read"):
        tokenizer = Tokenizer.from_buffer(data)
        require_bounded(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _add(tokenizer: Tokenizer, special: SpecialTokens) -> bool:
    """Add the tokens that `tokenizer` lacks, in transformers' order, and say whether there were any.

    `TokenizersBackend.__init__` (tokenization_utils_tokenizers.py) adds those of other flags again, too.
    """
    from tokenizers import AddedToken

    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    names = set(special.named.values())
    added = False
    for _, token in sorted(special.added.items()):
        wanted = _added_token(token, special=token.content in names)
        if repr(wanted) not in known:
            tokenizer.add_tokens([wanted])
            added = True
    contents = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for content in dict.fromkeys((*special.named.values(), *special.more)):
        if content not in contents:
            tokenizer.add_tokens([AddedToken(content, special=True)])
            added = True
    return added


def _added_token(token: Token, *, special: bool) -> Any:
    from tokenizers import AddedToken

    flags = dict(token.flags)
    if special:
        flags["special"] = True
    return AddedToken(token.content, **flags)


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()
