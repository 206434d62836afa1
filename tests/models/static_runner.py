"""Static attention fed by hand: what ExecuTorch's runner does with rotary tables, masks and caches."""

from __future__ import annotations

import torch


def fed(base, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Return the logits after each of `tokens` (1, count), fed in calls of `length`, the last padded."""
    _, options = base.example_args
    keys, values = options["in_cache_state"]
    (cache_len,) = options["masks"]
    states = options.get("in_conv_state", {})
    found = []
    for start in range(0, tokens.shape[1], length):
        some = tokens[:, start : start + length]
        count = some.shape[1]
        padded = torch.zeros(1, length, dtype=torch.int32)
        padded[:, :count] = some
        mask = torch.full((1, length, cache_len + length), float("-inf"))
        mask[:, :, :start] = 0
        mask[:, :, cache_len:] = torch.triu(mask[:, :, cache_len:], diagonal=1)
        given = {
            "masks": {cache_len: mask},
            "freqs_cos_override": base.module.rope.freqs_cos[start : start + length],
            "freqs_sin_override": base.module.rope.freqs_sin[start : start + length],
            "in_cache_state": (keys, values),
            "in_conv_state": states,
        }
        logits, news = base.module(padded, given)
        found.append(logits[:, :count])
        for caches, new in zip((keys, values), news["out_cache_state"], strict=True):
            for key, cache in caches.items():
                room = min(count, cache_len - start)
                cache[..., start : start + room, :] = new[key][..., :room, :]
        for key, state in states.items():
            joined = torch.cat([state, news["out_conv_state"][key][:, :count]], dim=1)
            states = {**states, key: joined[:, -state.shape[1] :]}
    return torch.cat(found, dim=1)
