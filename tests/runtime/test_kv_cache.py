"""The rule that a KV cache never survives a change of adapter."""

from __future__ import annotations

import pytest

from lora_core.errors import BundleError, UsageError
from lora_core.runtime.kv_cache import RESET_ON_ADAPTER_CHANGE, KvCache


@pytest.fixture
def cache():
    cache = KvCache(RESET_ON_ADAPTER_CHANGE, 8)
    cache.check("a", 0, 4)
    cache.wrote("a", 0, 4)
    return cache


def test_the_owner_goes_on(cache):
    cache.check("a", 4, 3)
    cache.wrote("a", 4, 3)
    cache.check("a", 7, 1)
    assert cache.filled == 7


def test_the_owner_may_go_back_and_then_only_on_from_there(cache):
    cache.check("a", 2, 1)
    cache.wrote("a", 2, 1)
    with pytest.raises(UsageError, match="filled to 3"):
        cache.check("a", 4, 1)


@pytest.mark.parametrize("other", ["b", None])
def test_another_adapter_cannot_go_on(cache, other):
    with pytest.raises(UsageError, match="belongs to adapter 'a'"):
        cache.check(other, 4, 1)


def test_another_adapter_that_starts_again_owns_it(cache):
    cache.check("b", 0, 2)
    cache.wrote("b", 0, 2)
    with pytest.raises(UsageError, match="belongs to adapter 'b'"):
        cache.check("a", 2, 1)


def test_nothing_follows_a_reset_but_the_start(cache):
    cache.reset()
    with pytest.raises(UsageError, match="filled to 0"):
        cache.check("a", 4, 1)


@pytest.mark.parametrize(("position", "count"), [(4, 5), (0, 9)])
def test_more_than_the_context_does_not_fit(cache, position, count):
    with pytest.raises(UsageError, match="context of 8 tokens"):
        cache.check("a", position, count)


@pytest.mark.parametrize(("position", "count"), [(-1, 1), (0, 0)])
def test_a_step_has_tokens_and_a_position(cache, position, count):
    with pytest.raises(UsageError, match="at least one token"):
        cache.check("a", position, count)


def test_a_policy_of_a_newer_bundle_is_refused():
    with pytest.raises(BundleError, match="'share-prefix'"):
        KvCache("share-prefix", 8)
