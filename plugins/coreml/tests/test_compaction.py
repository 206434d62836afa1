"""A compacted function is the same function: same constants in the file, same interface, every value defined once."""

import copy
from collections import Counter

import pytest
from lora_core_coreml.backend import CoremlBackend
from lora_core_coreml.program.compaction import compact, short_name
from lora_core_coreml.storage import mil, package, pte

from lora_core.bundle.bundle import Bundle


def stored_function(bundle: Bundle, name: str):
    (found,) = package.stored_packages(pte.read(bundle.path / "model.pte"))
    return mil.parse_model(found.read(package.MODEL)).mlProgram.functions[name]


def test_every_value_is_defined_once_before_it_is_used(bundle: Bundle) -> None:
    function = stored_function(bundle, "shout")
    defined = {value.name for value in function.inputs}
    for operation in mil.operations(function):
        used = [b.name for a in operation.inputs.values() for b in a.arguments if b.WhichOneof("binding") == "name"]
        assert set(used) <= defined, operation.type
        for output in operation.outputs:
            assert output.name not in defined
            defined.add(output.name)
    assert set(function.block_specializations[function.opset].outputs) <= defined


@pytest.mark.parametrize("name", ["forward", "shout"])
def test_no_constant_is_defined_twice(bundle: Bundle, name: str) -> None:
    values = Counter(
        operation.attributes["val"].SerializeToString(deterministic=True)
        for operation in mil.operations(stored_function(bundle, name))
        if operation.type == "const"
    )
    assert set(values.values()) == {1}


def test_no_operation_has_a_name_besides_its_outputs(bundle: Bundle) -> None:
    for name in ("forward", "shout"):
        assert not any("name" in operation.attributes for operation in mil.operations(stored_function(bundle, name)))


def test_compacting_again_changes_nothing(bundle: Bundle) -> None:
    function = stored_function(bundle, "shout")
    again = copy.deepcopy(function)
    compact(again, keep_weight_names=False)
    assert mil.serialize(again) == mil.serialize(function)


def test_weights_are_named_once_by_the_base(bundle: Bundle) -> None:
    assert any("attention_wqs" in name for name, _ in mil.blob_references(stored_function(bundle, "forward")))
    assert all(len(name) <= 3 for name, _ in mil.blob_references(stored_function(bundle, "shout")))


def test_short_names_are_distinct_identifiers() -> None:
    names = [short_name(number) for number in range(5000)]
    assert len(set(names)) == len(names)
    assert all(name[0].isupper() and name.isalnum() and name.isascii() for name in names)
    assert names == sorted(names, key=len)


def test_weights_that_no_base_method_uses_count_as_lora(bundle: Bundle) -> None:
    for blob in CoremlBackend().sharing.blobs(bundle):
        assert (blob.group == "lora") == ("forward" not in blob.methods)


def test_no_name_tells_what_the_process_did_before(bundle: Bundle) -> None:
    """coremltools numbers what it adds, such as a bias, by counters that go on from one lowering to the next."""
    names = [name for name, _ in mil.blob_references(stored_function(bundle, "forward"))]
    assert all(name.startswith("p_") or len(name) <= 3 for name in names)
