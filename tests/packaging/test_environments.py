"""Every distribution works where nothing is installed but what it declares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lora_core
from lora_core.errors import ExitCode
from lora_core.hub import PluginHub
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.hub.distributions import entry_points_of, install_example
from tests.packaging.distributions import CORE, PLAIN, QNN_SIM, Distribution
from tests.packaging.environment import Environment

pytestmark = pytest.mark.packaging
Installed = Callable[[Distribution], Environment]

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, "needs", error.name)
"""

EXPORT = """
import sys
import lora_core
directory, backend = sys.argv[1:3]
options = {"qnn_sim": {"context_len": 32, "input_len": 8}}.get(backend, {})
lora_core.export(
    f"{directory}/model", adapters={"a": f"{directory}/a"}, backend=backend, options=options, out=f"{directory}/bundle"
)
"""

RUN = """
import sys
import lora_core
with lora_core.open(sys.argv[1]) as session:
    print(*(session.step(adapter, tokens=[1, 2, 3], position=0).argmax() for adapter in (None, "a", "b")))
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A directory with a tiny `model` and its adapters `a` and `b`."""
    write_tiny_checkpoint(tmp_path / "model")
    for seed, name in enumerate("ab", start=1):
        write_tiny_adapter(tmp_path / name, seed=seed)
    return tmp_path


@pytest.fixture
def plain_bundle(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of the example backend with adapter `a`, made in the environment of the tests."""
    site = install_example(tmp_path_factory.mktemp("example"))
    sys.path.insert(0, str(site))
    hub = PluginHub(entry_points_of(site))
    yield lora_core.export(
        inputs / "model", adapters={"a": inputs / "a"}, backend="plain", out=inputs / "bundle", hub=hub
    ).path
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.startswith("lora_core_plain")]:
        del sys.modules[name]


def test_every_module_of_the_core_is_importable_but_for_those_that_extend_another_library(installed: Installed) -> None:
    needing = {
        "lora_core.adapters.slots.embedding_modules": "torch",
        "lora_core.adapters.slots.modules": "torch",
        "lora_core.models.executorch.attention": "torch",
        "lora_core.models.executorch.convolution": "torch",
        "lora_core.models.executorch.decoder": "torch",
        "lora_core.models.executorch.delta": "torch",
        "lora_core.models.executorch.experts": "torch",
        "lora_core.models.executorch.key_value_caches": "executorch",
        "lora_core.models.executorch.layer_inputs": "torch",
        "lora_core.models.injection": "torch",
        "lora_core.testing.pytest_plugin": "pytest",
    }
    told = "".join(f"{module} needs {library}\n" for module, library in needing.items())
    assert installed(CORE).script(IMPORT_ALL, CORE.stem) == told


@pytest.mark.parametrize("distribution", [QNN_SIM, PLAIN], ids=lambda distribution: distribution.name)
def test_every_module_of_a_light_plugin_is_importable(distribution: Distribution, installed: Installed) -> None:
    assert installed(distribution).script(IMPORT_ALL, distribution.stem) == ""


@pytest.mark.parametrize("distribution", [CORE, QNN_SIM, PLAIN], ids=lambda distribution: distribution.name)
def test_nothing_brings_torch(distribution: Distribution, installed: Installed) -> None:
    source = "from importlib.util import find_spec; print(find_spec('torch'), find_spec('executorch'))"
    assert installed(distribution).script(source) == "None None\n"


def test_the_core_alone_tells_its_version_and_helps(installed: Installed) -> None:
    core = installed(CORE)
    assert lora_core.__version__ in core.lora_core("--version")
    assert "inspect" in core.lora_core("--help")
    assert json.loads(core.lora_core("backends", "--json"))["backends"] == []


def test_the_core_alone_names_the_backend_that_a_bundle_needs(installed: Installed, plain_bundle: Path) -> None:
    ran = installed(CORE).call_lora_core("inspect", plain_bundle)
    assert ran.returncode != ExitCode.OK
    assert "made by backend 'plain', which no installed plugin offers" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_bundle_without_its_backend_is_no_wrong_command_line(installed: Installed, plain_bundle: Path) -> None:
    assert installed(CORE).call_lora_core("inspect", plain_bundle).returncode == ExitCode.PLUGIN


def test_the_example_adds_to_a_bundle_that_another_environment_made(installed: Installed, plain_bundle: Path) -> None:
    plain = installed(PLAIN)
    plain.lora_core("add", plain_bundle, "--adapter", f"b={plain_bundle.parent / 'b'}")
    facts = json.loads(plain.lora_core("inspect", plain_bundle, "--json"))
    assert [adapter["name"] for adapter in facts["adapters"]] == ["a", "b"]
    assert facts["problems"] == []


def test_the_example_exports(installed: Installed, inputs: Path) -> None:
    plain = installed(PLAIN)
    plain.script(EXPORT, inputs, "plain")
    assert json.loads(plain.lora_core("inspect", inputs / "bundle", "--json"))["problems"] == []


def test_the_simulator_exports_adds_and_runs(installed: Installed, inputs: Path) -> None:
    simulator = installed(QNN_SIM)
    simulator.script(EXPORT, inputs, "qnn_sim")
    simulator.lora_core("add", inputs / "bundle", "--adapter", f"b={inputs / 'b'}")
    assert json.loads(simulator.lora_core("inspect", inputs / "bundle", "--json"))["problems"] == []
    answers = simulator.script(RUN, inputs / "bundle").split()
    assert len(answers) == 3
    assert len(set(answers)) > 1
