"""The tutorials followed to the letter: what they tell to write is written, installed and asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from refdocs import listings
from safetensors.numpy import load_file, save_file

from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.hub.distributions import install

ROOT = Path(__file__).parents[2]
PAGES = {
    "docs/tutorial/backend.md": "examples/plugin",
    "docs/tutorial/running.md": "examples/runner_plugin",
    "docs/tutorial/adapter-format.md": "examples/format_plugin",
}
BACKEND, FORMAT = "docs/tutorial/backend.md", "docs/tutorial/adapter-format.md"


def follow(page: str, site: Path) -> Path:
    """Write what `page` tells to write, and install it into directory `site` as pip would."""
    files = {path.removeprefix(f"{PAGES[page]}/"): text for path, text in listings.listed(ROOT / page).items()}
    project = pyproject(page)["project"]
    return install(site, project["name"], project["entry-points"]["lora_core"], files, version="0.1.0")


def pyproject(page: str) -> dict[str, Any]:
    """Return the pyproject that `page` tells to write; it stands alone, where that of the example has our version."""
    shown = re.search(r"^<!-- project: (\S+) -->\n```toml\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert shown is not None
    assert shown[1] == PAGES[page]
    return tomllib.loads(shown[2])


def lora_core(site: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lora_core.cli.main", *map(str, words)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_shows_every_file_of_its_example(page: str) -> None:
    example = ROOT / PAGES[page]
    files = {path for path in example.rglob("*.py") if "tests" not in path.parts}
    assert set(listings.listed(ROOT / page)) == {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.parametrize("page", PAGES)
def test_the_project_of_a_tutorial_is_that_of_its_example(page: str) -> None:
    shown = pyproject(page)
    example = tomllib.loads((ROOT / PAGES[page] / "pyproject.toml").read_text("utf-8"))
    assert shown["build-system"] == example["build-system"]
    assert shown["tool"]["hatch"]["build"]["targets"]["wheel"] == example["tool"]["hatch"]["build"]["targets"]["wheel"]
    for field in ("name", "requires-python", "dependencies", "entry-points"):
        assert shown["project"][field] == example["project"][field], field


def test_the_backend_of_the_tutorial_conforms(tmp_path: Path) -> None:
    ended = lora_core(follow(BACKEND, tmp_path), "conform", "plain")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "conforms" in ended.stdout


def test_the_format_of_the_tutorial_reads_what_peft_would(tmp_path: Path) -> None:
    site = tmp_path / "site"
    follow(BACKEND, site)
    follow(FORMAT, site)
    model = write_tiny_checkpoint(tmp_path / "model")
    peft = write_tiny_adapter(tmp_path / "peft", seed=3)
    mlx = write_as_mlx(peft, tmp_path / "mlx", scale=2.0)  # alpha 8 over rank 4
    for name, adapter in (("one", peft), ("two", mlx)):
        out = tmp_path / name
        ended = lora_core(
            site, "export", "--backend", "plain", "--model", model, "--adapter", f"alice={adapter}", "-o", out
        )
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "one/alice.safetensors").read_bytes() == (tmp_path / "two/alice.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"fine_tune_type": "dora"}, "A fine-tune of type 'dora' is no LoRA adapter"),
        ({"lora_parameters": {"rank": 4}}, "There is no number `scale`"),
    ],
)
def test_the_format_of_the_tutorial_refuses_what_it_cannot_do(
    change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    follow(BACKEND, site)
    follow(FORMAT, site)
    model = write_tiny_checkpoint(tmp_path / "model")
    mlx = write_as_mlx(write_tiny_adapter(tmp_path / "peft", seed=3), tmp_path / "mlx", scale=2.0)
    config = json.loads((mlx / "adapter_config.json").read_text("utf-8"))
    (mlx / "adapter_config.json").write_text(json.dumps({**config, **change}), "utf-8")
    ended = lora_core(
        site, "export", "--backend", "plain", "--model", model, "--adapter", f"alice={mlx}", "-o", tmp_path / "out"
    )
    assert ended.returncode == 3
    assert complaint in ended.stderr


def write_as_mlx(peft: Path, directory: Path, *, scale: float) -> Path:
    """Write the adapter in `peft` as MLX-LM saves one."""
    directory.mkdir()
    stored = load_file(peft / "adapter_model.safetensors")
    named = {
        name.removeprefix("base_model.model.")
        .replace(".lora_A.weight", ".lora_a")
        .replace(".lora_B.weight", ".lora_b"): (tensor.T.copy())
        for name, tensor in stored.items()
    }
    save_file(named, directory / "adapters.safetensors")
    parameters = {"rank": 4, "scale": scale, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return directory
