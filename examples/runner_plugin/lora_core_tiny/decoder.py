"""A Llama in NumPy: RMSNorm, rotary positions, grouped-query attention with a cache, SwiGLU; LoRA beside any layer."""

import numpy as np

from lora_core_tiny.quantization import round_activations

EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"


def objections(summary):
    """Yield what keeps this decoder from computing the model that `summary` describes."""
    if summary.family != "llama":
        yield f"Models of family {summary.family!r} cannot be run, only llama"
        return
    if summary.config.get("rope_scaling") or summary.config.get("rope_parameters", {}).get("rope_type", "default") != (
        "default"
    ):
        yield "Scaled rotary positions cannot be run"
    if any(layer.has_bias for layer in summary.layers):
        yield "Linear layers with a bias cannot be run"


class Cache:
    """Keys and values of one text: per layer (key/value heads, positions, head size)."""

    def __init__(self, layers, heads, length, size):
        self.keys, self.values = (np.zeros((layers, heads, length, size), np.float32) for _ in range(2))


class Decoder:
    def __init__(self, config, weights, context_len):
        self.weights, self.context_len = weights, context_len
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.head_size = config.get("head_dim") or config["hidden_size"] // self.heads
        self.epsilon = config.get("rms_norm_eps", 1e-6)
        theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
        exponents = np.arange(0, self.head_size, 2, dtype=np.float32) / self.head_size
        angles = np.outer(np.arange(context_len, dtype=np.float32), 1 / np.float32(theta) ** exponents)
        self.cosines, self.sines = (np.tile(table(angles), 2).astype(np.float32) for table in (np.cos, np.sin))

    def new_cache(self):
        """Return an empty cache for a text of `context_len` tokens."""
        return Cache(self.layers, self.kv_heads, self.context_len, self.head_size)

    def step(self, tokens, position, cache, lora):
        """Feed `tokens` at `position` and return the logits of the last; `lora` holds parts by module."""
        x = self.weights[f"{EMBEDDING}.weight"][list(tokens)]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            x = x + self.attention(layer, self.norm(f"{name}.input_layernorm", x), position, cache, lora)
            x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", x), lora)
        tied = f"{HEAD}.weight" not in self.weights
        return self.linear(HEAD, self.norm(NORM, x[-1:]), lora, stored=EMBEDDING if tied else HEAD)[0]

    def attention(self, layer, x, position, cache, lora):
        name, count = f"model.layers.{layer}.self_attn", len(x)
        query, key, value = (self.split(self.linear(f"{name}.{part}_proj", x, lora)) for part in "qkv")
        end = position + count
        cache.keys[layer][:, position:end] = self.rotate(key, position)
        cache.values[layer][:, position:end] = value
        shared = self.heads // self.kv_heads  # each key and value head serves this many query heads
        keys, values = (np.repeat(each[layer][:, :end], shared, axis=0) for each in (cache.keys, cache.values))
        scores = self.rotate(query, position) @ keys.swapaxes(1, 2) / np.float32(self.head_size) ** np.float32(0.5)
        mixed = softmax(np.where(self.hidden(position, end), -np.inf, scores)) @ values
        return self.linear(f"{name}.o_proj", mixed.swapaxes(0, 1).reshape(count, -1), lora)

    def hidden(self, position, end):
        """Return which positions each token from `position` on does not see: those behind it."""
        return np.arange(end) > np.arange(position, end)[:, None]

    def mlp(self, name, x, lora):
        gate = self.linear(f"{name}.gate_proj", x, lora)
        up = self.linear(f"{name}.up_proj", x, lora)
        return self.linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * up, lora)

    def linear(self, name, x, lora, stored=None):
        """Return what layer `name` makes of `x`; `stored` is whose weight it is, if not its own."""
        weight = self.weights[f"{stored or name}.weight"]
        if weight.dtype == np.int8:
            out = (round_activations(x) @ weight.astype(np.float32).T) * self.weights[f"{stored or name}.scale"]
        else:
            out = x @ weight.T
        if name in lora:
            out = out + x @ lora[name]["a"].T @ lora[name]["b"].T
        return out

    def norm(self, name, x):
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.float32(self.epsilon)) * self.weights[f"{name}.weight"]

    def split(self, x):
        """Return (heads, tokens, head size) of (tokens, features)."""
        return x.reshape(len(x), -1, self.head_size).swapaxes(0, 1)

    def rotate(self, x, position):
        """Turn every pair (i, i + half) of each head by its position's angle."""
        table = slice(position, position + x.shape[1])
        first, second = np.split(x, 2, axis=-1)
        return x * self.cosines[table] + np.concatenate((-second, first), axis=-1) * self.sines[table]


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
