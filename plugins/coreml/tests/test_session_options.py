"""What a session of a CoreML bundle can be told, and what it does with it."""

import pytest
from lora_core_coreml import session
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.session_options import CoremlSessionOptions

from lora_core.bundle.bundle import Bundle
from lora_core.cli.option_fields import options_of
from lora_core.errors import UnsupportedError, UsageError
from lora_core.hub import PluginHub


def test_the_descriptor_names_the_options() -> None:
    assert PluginHub().session_options("coreml", {"precision": "float32"}) == CoremlSessionOptions(precision="float32")


def test_every_option_is_offered_on_the_command_line() -> None:
    assert {option.opts[0] for option in options_of(CoremlSessionOptions)} == {"--precision", "--execute"}


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"'float64'.*float16, float32, both"):
        PluginHub().session_options("coreml", {"precision": "float64"})


def test_a_precision_means_nothing_to_an_execution() -> None:
    with pytest.raises(UsageError, match="evaluation only"):
        CoremlSessionOptions(precision="float16", execute=True)


def test_execution_is_refused_where_there_is_no_coreml(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "can_execute", lambda: False)
    with pytest.raises(UnsupportedError, match=r"macOS only.*--execute"):
        CoremlBackend().open(bundle, CoremlSessionOptions(execute=True))


def test_a_machine_with_coreml_evaluates_unless_asked_otherwise(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "can_execute", lambda: True)
    with CoremlBackend().open(bundle, CoremlSessionOptions()) as opened:
        assert opened.facts["evaluates"] is True


def test_execution_runs_the_program_on_coreml_where_that_is_asked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the evaluator in the place of CoreML's runtime, which no test has."""
    monkeypatch.setattr(session, "can_execute", lambda: True)
    monkeypatch.setattr(session, "ExecutedProgram", session.EvaluatedProgram)
    with CoremlBackend().open(bundle, CoremlSessionOptions(execute=True)) as opened:
        assert opened.facts["evaluates"] is False
        assert "CoreML" in opened.facts["runtime"]


@pytest.mark.parametrize(("given", "expected"), [(None, "float32"), ("both", "float16 and float32")])
def test_a_float32_program_is_evaluated_in_float32_unless_asked_otherwise(exporter, given, expected: str) -> None:
    bundle = exporter.export(["shout"], dtype="fp32")
    with CoremlBackend().open(bundle, CoremlSessionOptions(precision=given)) as opened:
        assert opened.facts["precision"] == expected
