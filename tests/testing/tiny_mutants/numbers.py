"""Mutants that compute something else."""

from hashlib import sha256

import attrs
import numpy as np
from lora_core_tiny.decoder import Decoder, softmax
from lora_core_tiny.session import TinySession

from lora_core.adapters.slots.kinds import extent_of
from tiny_mutants.mutant import Mutant, mutant


def half(array):
    return array.astype(np.float16).astype(np.float32)


def updates(adapter):
    return {update.module: update for update in adapter.adapter.updates}


@mutant("base-numbers")
class RandomLogits(Mutant):
    """Logits are random numbers that depend on adapter, tokens and position."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            super().step(adapter, tokens, position)
            seed = sha256(repr((adapter, tuple(tokens), position)).encode()).digest()
            return np.random.default_rng(list(seed)).standard_normal(128).astype(np.float32)


@mutant("base-numbers")
class BaseInHalf(Mutant):
    """The base goes through float16, and the policy says float32."""

    def base_tensors(self, job):
        return {
            name: array if array.dtype == np.int8 else half(array) for name, array in super().base_tensors(job).items()
        }


@mutant("base-numbers")
class AttendsToTheFuture(Mutant):
    """The causal mask is missing: a prompt's tokens see those behind them."""

    class decoder(Decoder):
        def hidden(self, position, end):
            return np.zeros((end - position, end), bool)


@mutant("base-numbers")
class LastTokenOnly(Mutant):
    """All but the last token of a prompt are ignored."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            if position == 0:
                cache.keys[:], cache.values[:] = 0, 0
                return super().step([tokens[-1]] * len(tokens), 0, cache, lora)
            return super().step(tokens, position, cache, lora)


@mutant("base-numbers")
class FirstLogits(Mutant):
    """The logits are those of a prompt's first token."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            logits = super().step(tokens[:1], position, cache, lora)
            if len(tokens) > 1:
                super().step(tokens[1:], position + 1, cache, lora)
            return logits


@mutant("base-numbers")
class DecodesOffByOne(Mutant):
    """Tokens that are decoded one by one stand one position too far."""

    class decoder(Decoder):
        def rotate(self, x, position):
            return super().rotate(x, min(position + 1, self.context_len - x.shape[1]) if position else position)


@mutant("base-numbers")
class OtherHeads(Mutant):
    """Query heads use the key and value heads of others (interleaved and not in groups)."""

    class decoder(Decoder):
        def split(self, x):
            heads = super().split(x)
            return heads[[0, 2, 1, 3]] if len(heads) == self.heads else heads


@mutant("base-numbers")
class OtherRotation(Mutant):
    """Rotary positions turn neighbouring pairs in place of halves."""

    class decoder(Decoder):
        def rotate(self, x, position):
            table = slice(position, position + x.shape[1])
            half_size = self.head_size // 2
            cosines, sines = (np.repeat(each[table, :half_size], 2, axis=-1) for each in (self.cosines, self.sines))
            turned = np.stack((-x[..., 1::2], x[..., ::2]), axis=-1).reshape(x.shape)
            return x * cosines + turned * sines


@mutant("base-numbers")
class OtherEpsilon(Mutant):
    """Normalizations use an epsilon of their own, not the configuration's."""

    class decoder(Decoder):
        def __init__(self, config, weights, context_len):
            super().__init__({**config, "rms_norm_eps": 1e-2}, weights, context_len)


@mutant("base-numbers")
class ShortPrompts(Mutant):
    """A prompt is cut to its last sixteen tokens."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            cut = tokens if position else tokens[-16:]
            logits = super().step(adapter, cut, position if position < 16 or position else 0)
            self._rule.wrote(adapter, position, len(tokens))
            return logits


@mutant("base-numbers")
class LogProbabilities(Mutant):
    """Probabilities are returned in place of logits."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            return softmax(super().step(tokens, position, cache, lora))


@mutant("base-numbers")
class NotFinite(Mutant):
    """One logit is always infinite."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            logits = super().step(tokens, position, cache, lora)
            return np.where(np.arange(len(logits)) == 5, np.float32(np.inf), logits)


@mutant("base-numbers")
class OtherShape(Mutant):
    """Logits have a leading axis of one."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            return super().step(tokens, position, cache, lora)[None]


@mutant("pieces-numbers")
class PiecesAlone(Mutant):
    """Several tokens that follow others do not attend to those before them."""

    class decoder(Decoder):
        def step(self, tokens, position, cache, lora):
            if position and len(tokens) > 1:
                cache.keys[:, :, :position] = 0
            return super().step(tokens, position, cache, lora)


@mutant("pieces-numbers")
class LastPosition(Mutant):
    """The last position of the context is computed as the one before it."""

    class decoder(Decoder):
        def __init__(self, config, weights, context_len):
            super().__init__(config, weights, context_len)
            self.cosines[-1], self.sines[-1] = self.cosines[-2], self.sines[-2]


@mutant("adapter-numbers")
class ScalingLeftOut(Mutant):
    """The scaling of an adapter is left out."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        for module, update in updates(adapter).items():
            parts[f"{module}.b"] = parts[f"{module}.b"] / np.float32(update.scaling)
        return parts


@mutant("adapter-numbers")
class ScalingTwice(Mutant):
    """The scaling of an adapter is applied twice."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        for module, update in updates(adapter).items():
            parts[f"{module}.b"] = parts[f"{module}.b"] * np.float32(update.scaling)
        return parts


@mutant("adapter-numbers")
class OtherSign(Mutant):
    """Adapters are taken away in place of being added."""

    def adapter_tensors(self, adapter):
        return {
            name: -array if name.endswith(".b") else array for name, array in super().adapter_tensors(adapter).items()
        }


@mutant("adapter-numbers")
class LayersExchanged(Mutant):
    """The updates of the first and the second layer change places."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        places = {"0": "1", "1": "0"}
        return {".".join(places.get(word, word) for word in name.split(".")): array for name, array in parts.items()}


@mutant("adapter-numbers")
class MlpIgnored(Mutant):
    """LoRA on the layers of the MLP is stored and not applied."""

    class session(TinySession):
        def read_adapter(self, adapter):
            return {name: parts for name, parts in super().read_adapter(adapter).items() if ".mlp." not in name}


@mutant("adapter-numbers")
class FirstLayerOnly(Mutant):
    """LoRA is applied in the first layer only."""

    class session(TinySession):
        def read_adapter(self, adapter):
            return {name: parts for name, parts in super().read_adapter(adapter).items() if ".layers.0." in name}


@mutant("adapter-numbers")
class RanksCut(Mutant):
    """Ranks beyond eight are cut off."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        return {
            name: np.ascontiguousarray(array[:8] if name.endswith(".a") else array[:, :8])
            for name, array in parts.items()
        }


@mutant("adapter-numbers")
class SmallestRank(Mutant):
    """Every pair is cut to the smallest rank of its adapter."""

    def adapter_tensors(self, adapter):
        rank = min(extent_of(update).rank for update in updates(adapter).values())
        parts = super().adapter_tensors(adapter)
        return {
            name: np.ascontiguousarray(array[:rank] if name.endswith(".a") else array[:, :rank])
            for name, array in parts.items()
        }


@mutant("adapter-numbers")
class EvenRanks(Mutant):
    """Odd ranks are rounded down to even ones."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        ranks = {name: array.shape[0 if name.endswith(".a") else 1] // 2 * 2 for name, array in parts.items()}
        return {
            name: np.ascontiguousarray(array[: ranks[name]] if name.endswith(".a") else array[:, : ranks[name]])
            for name, array in parts.items()
        }


@mutant("adapter-numbers")
class LoraInHalf(Mutant):
    """LoRA goes through float16, and the policy says float32."""

    def adapter_tensors(self, adapter):
        return {name: half(array) for name, array in super().adapter_tensors(adapter).items()}


@mutant("adapter-numbers")
class OneScaling(Mutant):
    """The scaling of the first module is that of all: alpha patterns are lost."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        scalings = {module: update.scaling for module, update in updates(adapter).items()}
        first = next(iter(scalings.values()))
        for module, scaling in scalings.items():
            parts[f"{module}.b"] = parts[f"{module}.b"] * np.float32(first / scaling)
        return parts


@mutant("adapter-numbers")
class RankStabilizedIgnored(Mutant):
    """The scaling of a rank-stabilized adapter is alpha / r, as if it were none."""

    def adapter_tensors(self, adapter):
        parts = super().adapter_tensors(adapter)
        stabilized = [module for module in updates(adapter) if ".mlp." in module]  # the kit's only one
        for module in stabilized:
            parts[f"{module}.b"] = parts[f"{module}.b"] / np.float32(extent_of(updates(adapter)[module]).rank ** 0.5)
        return parts


@mutant("adapter-numbers")
class QueryForValue(Mutant):
    """Updates of v_proj are applied to k_proj."""

    class session(TinySession):
        def read_adapter(self, adapter):
            return {name.replace("v_proj", "k_proj"): parts for name, parts in super().read_adapter(adapter).items()}


@mutant("adapter-numbers")
class AdaptersDeaf(Mutant):
    """Every adapter answers as the base does."""

    class session(TinySession):
        def read_adapter(self, adapter):
            super().read_adapter(adapter)
            return {}


@mutant("adapter-numbers")
class AdaptersAlike(Mutant):
    """Every adapter answers as the one that was loaded first."""

    class session(TinySession):
        first = None

        def read_adapter(self, adapter):
            self.first = self.first or adapter
            return super().read_adapter(self.first)


@mutant("quantized-numbers", policy="8da8w")
class ComputesInFloat(Mutant):
    """A quantized policy is stored as integers beside the float32 weights, which are what computes."""

    def base_tensors(self, job):
        tensors = super().base_tensors(job)
        plain = {
            f"{layer.name}.plain": job.model.tensors()[f"{layer.tied_to or layer.name}.weight"].read()
            for layer in job.model.summary.layers
            if job.policy.decide(layer) is not None
        }
        return {**tensors, **plain}

    class decoder(Decoder):
        def __init__(self, config, weights, context_len):
            plain = {name.replace(".plain", ".weight"): array for name, array in weights.items() if ".plain" in name}
            super().__init__(config, {**weights, **plain}, context_len)


@mutant("quantized", policy="8da8w")
class NotQuantized(Mutant):
    """A quantized policy is declared, and float32 is stored."""

    def base_tensors(self, job):
        nothing = attrs.evolve(job, policy=attrs.evolve(job.policy, linear=None, output=None))
        return super().base_tensors(nothing)


@mutant("context-length")
class ContextIgnored(Mutant):
    """The context length that was asked for is ignored."""

    class session(TinySession):
        def __init__(self, bundle):
            longer = attrs.evolve(bundle.manifest, options={"max_context_len": 48})
            super().__init__(attrs.evolve(bundle, manifest=longer))


@mutant("context-length")
class TooLongAccepted(Mutant):
    """A text longer than the context is accepted; its beginning is forgotten."""

    class session(TinySession):
        def step(self, adapter, tokens, position):
            if position + len(tokens) > self._context_len:
                return super().step(adapter, tokens[-1:], 0)
            return super().step(adapter, tokens, position)
