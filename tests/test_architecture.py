"""Who may import whom, what plugins may import, and that one word means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from lora_core.plugin.public import PUBLIC

ROOT = Path(__file__).parents[1]

# Each floor may import from the floors before it, and rooms of one floor nothing of each other.
FLOORS = (
    (
        "errors",
        "capability",
        "elementary",
        "fast_lowering",
        "suggestions",
        "pte",
        "moved",
        "temporary",
        "units",
        "version",
    ),
    ("intake",),
    ("events", "git_lfs", "outcome"),
    ("tensors",),
    ("layers", "limits", "prompting"),
    ("quant", "specs"),
    ("adapters",),
    ("models",),
    ("bundle", "preparation", "runtime"),
    ("sharing",),
    ("backend", "executor", "hookspecs", "verification"),
    ("processes", "template_cache"),
    ("plugin",),
    ("hub",),
    ("pipeline",),
    ("fleet",),
    ("html", "__init__"),
    ("testing",),
    ("cli",),
)
PLUGINS = {
    "lora_core_xnnpack": ROOT / "plugins/xnnpack/lora_core_xnnpack",
    "lora_core_coreml": ROOT / "plugins/coreml/lora_core_coreml",
    "lora_core_qnn_sim": ROOT / "plugins/qnn_sim/lora_core_qnn_sim",
    "lora_core_onnx": ROOT / "plugins/onnx/lora_core_onnx",
    "lora_core_ray": ROOT / "plugins/ray/lora_core_ray",
    "lora_core_transformers": ROOT / "plugins/transformers/lora_core_transformers",
    "lora_core_plain": ROOT / "examples/plugin/lora_core_plain",
    "lora_core_tiny": ROOT / "examples/runner_plugin/lora_core_tiny",
    "lora_core_mlx": ROOT / "examples/format_plugin/lora_core_mlx",
}
SKELETON = ("hooks", "options", "backend", "checks", "exporting", "linking", "quant", "sharing", "session")
# XNNPACK has two layouts, which export and link each in a folder of its own.
BY_LAYOUT = {"lora_core_xnnpack": {"exporting", "linking"}}
# Two things may have one name where it is their role that is named, once in each plugin.
ROLES = {"Matrix"}


def modules(package: str, directory: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(directory).with_suffix("").parts
        name = ".".join((package, *(part for part in parts if part != "__init__")))
        yield name, ast.parse(path.read_text("utf-8"))


@cache
def known() -> frozenset[str]:
    core = {name for name, _ in modules("lora_core", ROOT / "lora_core")}
    return frozenset(core | {name for package, path in PLUGINS.items() for name, _ in modules(package, path)})


def imports(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) of all that is imported, also inside functions and for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, None) if whole in known() else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def runtime_imports(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that are imported for more than types."""
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    kept = ast.Module(
        body=[node for node in ast.walk(tree) if isinstance(node, ast.stmt) and id(node) not in typed], type_ignores=[]
    )
    flat = ast.Module(
        body=[node for node in kept.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
    )
    yield from (module for module, _ in imports(flat))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_of_the_core_has_its_floor() -> None:
    floors = {name for floor in FLOORS for name in floor}
    assert {room(name) for name, _ in modules("lora_core", ROOT / "lora_core")} - floors == set()


def test_rooms_of_the_core_import_only_from_the_floors_below() -> None:
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = set()
    for name, tree in modules("lora_core", ROOT / "lora_core"):
        for module in runtime_imports(tree):
            if module.partition(".")[0] != "lora_core" or room(module) == room(name):
                continue
            if floor_of[room(module)] >= floor_of[room(name)]:
                wrong.add(f"{name} imports {module}")
    assert sorted(wrong) == []


@pytest.mark.parametrize("package", ["lora_core", *PLUGINS])
def test_no_modules_import_each_other(package: str) -> None:
    directory = PLUGINS.get(package, ROOT / "lora_core")
    graph = {
        name: {module for module in runtime_imports(tree) if module in known() and module != name}
        for name, tree in modules(package, directory)
    }
    circles = []
    for name in graph:
        seen: set[str] = set()
        waiting = list(graph[name])
        while waiting:
            each = waiting.pop()
            if each not in seen and each in graph:
                seen.add(each)
                waiting += graph[each]
        if name in seen:
            circles.append(name)
    assert circles == []


@pytest.mark.parametrize("package", PLUGINS)
def test_plugins_import_of_the_core_what_is_public(package: str) -> None:
    wrong = {
        f"{name} imports {module}"
        for name, tree in modules(package, PLUGINS[package])
        for module, _ in imports(tree)
        if module.partition(".")[0] == "lora_core" and module not in PUBLIC
    }
    assert sorted(wrong) == []


@pytest.mark.parametrize("package", ["lora_core", *PLUGINS])
def test_no_plugin_is_imported_by_core_or_by_another_plugin(package: str) -> None:
    others = set(PLUGINS) - {package}
    directory = PLUGINS.get(package, ROOT / "lora_core")
    found = {m for _, tree in modules(package, directory) for m, _ in imports(tree) if m.partition(".")[0] in others}
    assert found == set()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_module_is_there(module: str) -> None:
    assert import_module(module).__doc__


@pytest.mark.parametrize("package", ["lora_core_xnnpack", "lora_core_coreml", "lora_core_qnn_sim", "lora_core_onnx"])
def test_every_plugin_has_the_same_skeleton(package: str) -> None:
    expected = set(SKELETON) - BY_LAYOUT.get(package, set())
    assert expected <= {path.stem for path in PLUGINS[package].glob("*.py")}


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package, directory in {"lora_core": ROOT / "lora_core", **PLUGINS}.items():
        for name, tree in modules(package, directory):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_of_the_core_is_called_report_layout_or_plans() -> None:
    names = [name for name, _ in modules("lora_core", ROOT / "lora_core")]
    words = [name for name in names if name.rpartition(".")[2] in ("layout", "plans", "targets", "report")]
    assert sorted(words) == ["lora_core.adapters.targets", "lora_core.sharing.report"]
