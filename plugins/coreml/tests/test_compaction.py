"""A compacted function is the same function: same constants in the file, same interface, every value defined once."""

import copy
from collections import Counter

from lora_core_coreml.compaction import compact
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


def test_no_small_constant_is_stored_twice(bundle: Bundle) -> None:
    values = Counter(
        operation.attributes["val"].SerializeToString(deterministic=True)
        for operation in mil.operations(stored_function(bundle, "forward"))
        if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "immediateValue"
    )
    assert set(values.values()) == {1}


def test_compacting_again_changes_nothing(bundle: Bundle) -> None:
    function = stored_function(bundle, "shout")
    again = copy.deepcopy(function)
    compact(again)
    assert mil.serialize(again) == mil.serialize(function)


def test_constants_in_the_file_keep_their_names(bundle: Bundle) -> None:
    names = [name for name, _ in mil.blob_references(stored_function(bundle, "shout"))]
    assert sum("lora_a" in name for name in names) == 4
    assert sum("lora_b" in name for name in names) == 4
