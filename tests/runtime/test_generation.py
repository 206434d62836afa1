"""The generation loop, on a session that computes its logits by rule."""

from __future__ import annotations

import pytest

from lora_core.errors import UsageError
from lora_core.runtime.generation import StopRules, generate
from lora_core.runtime.sampling import Sampling


def limits(max_new_tokens=4, context_len=32, eos_ids=(60,)):
    return StopRules(max_new_tokens=max_new_tokens, context_len=context_len, eos_ids=eos_ids)


def test_the_prompt_goes_in_at_once_and_each_token_after_it(session):
    done = generate(session, None, [3, 4], limits())
    assert done.tokens == (5, 6, 7, 8)
    assert session.calls == [(None, (3, 4), 0), (None, (5,), 2), (None, (6,), 3), (None, (7,), 4)]


def test_an_adapter_is_loaded_and_used(session):
    assert generate(session, "abc", [3], limits()).tokens == (6, 9, 12, 15)
    assert list(session.loaded) == ["abc"]


def test_generation_ends_before_an_end_token(session):
    done = generate(session, None, [57], limits(eos_ids={60, 63}))
    assert (done.tokens, done.stopped_by) == ((58, 59), "eos")


def test_an_end_token_may_come_first(session):
    done = generate(session, None, [59], limits())
    assert (done.tokens, done.stopped_by, done.decode_steps) == ((), "eos", 0)


def test_generation_ends_at_the_number_of_tokens_asked_for(session):
    done = generate(session, None, [1], limits(max_new_tokens=2))
    assert (done.tokens, done.stopped_by, done.decode_steps) == ((2, 3), "max-new-tokens", 1)


def test_generation_ends_when_the_context_is_full(session):
    done = generate(session, None, [1, 2, 3], limits(max_new_tokens=99, context_len=6))
    assert (done.tokens, done.stopped_by) == ((4, 5, 6), "context")


def test_no_tokens_asked_for_gives_none(session):
    assert generate(session, None, [1], limits(max_new_tokens=0)).tokens == ()


def test_every_token_is_told_as_it_comes(session):
    heard = []
    done = generate(session, None, [1], limits(), on_token=heard.append)
    assert tuple(heard) == done.tokens


@pytest.mark.parametrize(
    ("prompt", "told"), [([], "empty"), ([1] * 32, "32 tokens, and the bundle was exported for 32")]
)
def test_a_prompt_without_content_or_room_is_refused(session, prompt, told):
    with pytest.raises(UsageError, match=told):
        generate(session, None, prompt, limits())


def test_a_change_of_adapter_starts_from_the_beginning(session):
    generate(session, "ab", [1, 2], limits())
    generate(session, "abc", [1, 2], limits())
    assert next(position for adapter, _, position in session.calls if adapter == "abc") == 0


def test_sampling_with_a_seed_repeats(session):
    warm = Sampling(temperature=8.0, seed=7)
    first = generate(session, None, [1], limits(max_new_tokens=12, eos_ids=()), sampling=warm)
    again = generate(session, None, [1], limits(max_new_tokens=12, eos_ids=()), sampling=warm)
    other = generate(
        session, None, [1], limits(max_new_tokens=12, eos_ids=()), sampling=Sampling(temperature=8.0, seed=8)
    )
    assert first.tokens == again.tokens != other.tokens
