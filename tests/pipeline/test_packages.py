"""Packages: one file an adapter, which adds what its directory would, or is refused saying why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lora_core
from lora_core.adapters.packages.header import FORMAT
from lora_core.adapters.packages.reading import AdapterPackage
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import AdapterError, LoraCoreError, UnsupportedError, UsageError
from lora_core.events import FileWritten
from lora_core.models.base import TokenizerFiles
from lora_core.models.text.stored import files_in
from lora_core.pipeline import packing
from lora_core.pipeline.packing import package_reference
from tests.runtime.text_kinds import byte_level, write


@pytest.fixture
def pack(hub, tmp_path):
    """Pack the adapter in a directory for a bundle; the name is the directory's."""

    def run(bundle, directory: Path, *, strength: float = 1.0, out: str | None = None, **more) -> Path:
        reference = AdapterReference(name=directory.name, directory=directory, strength=strength)
        target = tmp_path / (out or f"{directory.name}.lora")
        return lora_core.pack(bundle, reference, out=target, hub=hub, **more).path

    return run


@pytest.fixture
def roomy(export):
    """A bundle with a rank to spare."""
    return export("roomy", max_rank=4, targets=["q_proj", "v_proj"])


def retyped(directory: Path, dtype: type) -> Path:
    weights = directory / "adapter_model.safetensors"
    save_file({name: tensor.astype(dtype) for name, tensor in load_file(weights).items()}, weights)
    return directory


def with_head(path: Path, change) -> Path:
    """Write the package at `path` again with its header's document changed, with the digest that it had."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    document = json.loads(data[8 : 8 + length])
    change(document)
    head = json.dumps(document, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    return path


@pytest.mark.parametrize("layout", ["split", "joint"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_a_package_adds_the_bytes_that_its_directory_adds(
    export, make_adapter, pack, contents, hub, tmp_path, layout, strength
):
    directory = retyped(make_adapter("a", rank=3), np.float16)
    for name in ("by_directory", "by_package"):
        export(name, max_rank=4, targets=["q_proj", "v_proj"], options={"layout": layout})
    reference = AdapterReference(name="a", directory=directory, strength=strength)
    lora_core.add(tmp_path / "by_directory", [reference], hub=hub)
    package = pack(tmp_path / "by_package", directory, strength=strength)
    lora_core.add(tmp_path / "by_package", [package_reference(package)], hub=hub)
    assert contents(tmp_path / "by_package") == contents(tmp_path / "by_directory")


@pytest.mark.parametrize(("dtype", "word"), [(np.float16, "F16"), (np.float32, "F32")])
def test_matrices_are_stored_in_the_types_of_the_adapter(make_adapter, pack, roomy, dtype, word):
    package = AdapterPackage.open(pack(roomy, retyped(make_adapter("a"), dtype)))
    assert {tensor.dtype for parts in package.tensors.values() for tensor in parts.values()} == {word}


def test_a_package_is_a_safetensors_file_that_says_what_it_is(make_adapter, pack, roomy):
    with safe_open(pack(roomy, make_adapter("a")), framework="numpy") as file:
        assert file.metadata()["format"] == FORMAT
        assert file.metadata()["foundation"] == roomy.manifest.foundation
        assert "model.layers.0.self_attn.q_proj/low_rank/a" in file.keys()  # noqa: SIM118 - a file, not a dict


def test_packing_repeats_to_the_byte(make_adapter, pack, roomy):
    directory = make_adapter("a")
    assert pack(roomy, directory, out="one").read_bytes() == pack(roomy, directory, out="two").read_bytes()


def test_an_adapter_can_be_added_under_another_name(make_adapter, pack, roomy, hub):
    reference = package_reference(pack(roomy, make_adapter("a")), "other")
    added = lora_core.add(roomy, [reference], hub=hub)
    assert [adapter.name for adapter in added.manifest.adapters] == ["other"]


def test_a_backend_that_gives_no_matrices_back_asks_for_the_directory(export, make_adapter, hub, tmp_path):
    bundle = export("b", {"a": make_adapter("a")})
    with pytest.raises(UnsupportedError, match="a=DIR"):
        lora_core.pack(bundle, "a", out=tmp_path / "a.lora", hub=hub)
    assert not (tmp_path / "a.lora").exists()


def test_packing_an_unknown_adapter_names_the_likely_one(export, make_adapter, hub):
    bundle = export("b", {"pirate": make_adapter("pirate")})
    with pytest.raises(UsageError, match="Did you mean 'pirate'"):
        lora_core.pack(bundle, "pirat", hub=hub)


def test_a_package_of_another_foundation_is_refused(export, fake, make_adapter, pack, roomy, hub):
    stranger = export("stranger", model=fake.FakeModel(seed=2), max_rank=4, targets=["q_proj", "v_proj"])
    package = pack(stranger, make_adapter("a"))
    with pytest.raises(AdapterError, match="is for foundation"):
        lora_core.add(roomy, [package_reference(package)], hub=hub)


def test_a_package_of_another_template_is_refused(export, make_adapter, pack, roomy, hub):
    smaller = export("smaller", max_rank=2, targets=["q_proj", "v_proj"])
    package = pack(smaller, make_adapter("a"))
    with pytest.raises(AdapterError, match="is for a template"):
        lora_core.add(roomy, [package_reference(package)], hub=hub)


def test_a_package_of_a_newer_version_is_refused(make_adapter, pack, roomy):
    package = with_head(pack(roomy, make_adapter("a")), lambda head: head["__metadata__"].update(version="2"))
    with pytest.raises(AdapterError, match=r"version 2; this lora-core reads up to 1.*Update lora-core"):
        AdapterPackage.open(package)


@pytest.mark.parametrize("field", ["name", "foundation", "template", "plan", "scaling", "adapter", "digest"])
def test_a_package_without_one_of_its_fields_is_refused(make_adapter, pack, roomy, field):
    package = with_head(pack(roomy, make_adapter("a")), lambda head: head["__metadata__"].pop(field))
    with pytest.raises(AdapterError, match=field):
        AdapterPackage.open(package)


def test_a_package_with_a_field_that_nothing_uses_is_refused(make_adapter, pack, roomy):
    package = with_head(pack(roomy, make_adapter("a")), lambda head: head["__metadata__"].update(odd="1"))
    with pytest.raises(AdapterError, match="nothing uses its fields odd"):
        AdapterPackage.open(package)


def test_every_changed_byte_is_found(make_adapter, pack, roomy):
    package = pack(roomy, make_adapter("a", rank=1))
    whole = package.read_bytes()
    passed = []
    for position in range(0, len(whole), 7):
        package.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            AdapterPackage.open(package)
            passed.append(position)
        except LoraCoreError:
            pass
    assert passed == []


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_a_package_that_is_cut_short_is_refused(make_adapter, pack, roomy, hub, kept):
    package = pack(roomy, make_adapter("a"))
    whole = package.read_bytes()
    package.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(AdapterError):
        lora_core.add(roomy, [AdapterReference(name="a", package=package)], hub=hub)


def test_a_plain_safetensors_file_is_no_package(make_adapter, roomy, hub):
    weights = make_adapter("a") / "adapter_model.safetensors"
    with pytest.raises(AdapterError, match="not an adapter package"):
        lora_core.add(roomy, [AdapterReference(name="a", package=weights)], hub=hub)


def test_how_an_adapter_is_prompted_travels_in_its_package(export, fake, make_adapter, pack, contents, hub, tmp_path):
    write(tmp_path / "model", byte_level())
    model = fake.FakeModel(files=TokenizerFiles(files=files_in(tmp_path / "model")))
    directory = make_adapter("a")
    ends = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
    write(directory, byte_level(), config=ends, template="{% for m in messages %}<|end|>{{ m.content }}{% endfor %}")
    (directory / "config.json").unlink()
    for name in ("by_directory", "by_package"):
        export(name, model=model, max_rank=4, targets=["q_proj", "v_proj"])
    lora_core.add(tmp_path / "by_directory", {"a": directory}, hub=hub)
    package = pack(tmp_path / "by_package", directory)
    added = lora_core.add(tmp_path / "by_package", [package_reference(package)], hub=hub)
    assert added.manifest.adapters[0].prompting is not None
    assert contents(tmp_path / "by_package") == contents(tmp_path / "by_directory")


class TestSignatures:
    @pytest.fixture
    def keys(self, tmp_path):
        """Write a private and a public key from a seed; return their paths."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

        def make(seed: int) -> tuple[Path, Path]:
            key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
            private, public = tmp_path / f"{seed}.key", tmp_path / f"{seed}.pub"
            private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
            return private, public

        return make

    def test_a_package_signed_by_a_trusted_key_is_added(self, make_adapter, pack, roomy, hub, keys):
        private, public = keys(1)
        package = pack(roomy, make_adapter("a"), sign=private)
        added = lora_core.add(roomy, [package_reference(package)], trust=[keys(2)[1], public], hub=hub)
        assert [adapter.name for adapter in added.manifest.adapters] == ["a"]

    def test_signing_repeats_to_the_byte(self, make_adapter, pack, roomy, keys):
        directory, (private, _) = make_adapter("a"), keys(1)
        one, two = (pack(roomy, directory, sign=private, out=name).read_bytes() for name in ("one", "two"))
        assert one == two

    @pytest.mark.parametrize(("signed", "message"), [(None, "not signed"), (2, "none of the trusted keys")])
    def test_what_no_trusted_key_signed_is_refused(self, make_adapter, pack, roomy, hub, keys, signed, message):
        package = pack(roomy, make_adapter("a"), sign=None if signed is None else keys(signed)[0])
        with pytest.raises(AdapterError, match=message):
            lora_core.add(roomy, [package_reference(package)], trust=[keys(1)[1]], hub=hub)

    def test_a_signature_of_other_bytes_does_not_hold(self, make_adapter, pack, roomy, hub, keys):
        private, public = keys(1)
        package = pack(roomy, make_adapter("a"), sign=private)
        other = AdapterPackage.open(pack(roomy, make_adapter("b"), sign=private))
        with_head(package, lambda head: head["__metadata__"].update(signature=other.signature))
        with pytest.raises(AdapterError, match="signature does not hold"):
            lora_core.add(roomy, [package_reference(package)], trust=[public], hub=hub)

    def test_with_trust_a_directory_is_refused(self, make_adapter, roomy, hub, keys):
        with pytest.raises(AdapterError, match="is no package"):
            lora_core.add(roomy, {"a": make_adapter("a")}, trust=[keys(1)[1]], hub=hub)

    def test_a_file_that_is_no_key_is_refused(self, make_adapter, pack, roomy, tmp_path):
        (tmp_path / "no.key").write_text("secret")
        with pytest.raises(UsageError, match="no key in PEM"):
            pack(roomy, make_adapter("a"), sign=tmp_path / "no.key")


def test_an_interruption_after_a_package_is_there_says_that_it_is(make_adapter, roomy, pack, tmp_path, monkeypatch):
    told, target = [], tmp_path / "a.lora"
    whole = packing.write_whole

    def interrupted(*words):
        whole(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(roomy, make_adapter("a"), emit=told.append)
    assert FileWritten(path=target) in told
