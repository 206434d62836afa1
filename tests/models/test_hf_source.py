"""Where Hugging Face models are found, and what travels with them."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lora_core.errors import ModelError
from lora_core.hub import PluginHub
from lora_core.models import hub_cache
from lora_core.models.hf import HfModelSource
from lora_core.pipeline import given

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def open_model(ref, **options):
    return HfModelSource().open(str(ref), **options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(cache, source, ref: str = "someone/tiny-llama"):
    repository = cache / f"models--{ref.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def test_directory_is_opened_under_its_own_name(llama_directory):
    summary = open_model(llama_directory).summary
    assert (summary.name, summary.identities) == ("llama", ("llama",))
    assert (summary.family, summary.vocab_size, summary.context_len) == ("llama", 128, 256)


def test_hub_id_is_found_in_the_local_cache(cache, llama_directory):
    put_in_cache(cache, llama_directory)
    model = open_model("someone/tiny-llama")
    assert model.directory == cache / "models--someone--tiny-llama" / "snapshots" / COMMIT
    assert model.summary.name == "tiny-llama"
    assert model.summary.identities == ("someone/tiny-llama", "tiny-llama")


def test_snapshot_given_as_a_directory_keeps_its_hub_id(cache, llama_directory):
    put_in_cache(cache, llama_directory)
    summary = open_model(cache / "models--someone--tiny-llama" / "snapshots" / COMMIT).summary
    assert (summary.name, summary.identities) == ("tiny-llama", ("someone/tiny-llama", "tiny-llama"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/d"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HOME": "/e"}, "/e/.cache/huggingface/hub"),
    ],
)
def test_cache_directory_is_the_one_huggingface_hub_uses(cache, monkeypatch, variables, expected):
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub_cache.cache_directory()) == expected


def test_hub_id_that_is_not_cached_says_how_to_download(cache):
    with pytest.raises(ModelError) as raised:
        open_model("someone/tiny-llama")
    assert str(raised.value) == (
        "Model 'someone/tiny-llama' is neither a directory nor in the local Hugging Face cache. "
        f"Give a directory, or allow the download with --download. ({cache})"
    )


def test_directory_wins_over_a_hub_id_of_the_same_spelling(cache, llama_directory, monkeypatch):
    monkeypatch.chdir(llama_directory.parent.parent)
    ref = f"{llama_directory.parent.name}/llama"
    assert hub_cache.is_hub_id(ref)
    assert open_model(ref).summary.identities == ("llama",)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [("DIR", True), ("someone/model", True), ("DIR/..", False), ("name", False), ("a/b/c", False), ("x\0/y", False)],
)
def test_source_recognizes_directories_and_hub_ids(llama_directory, ref, expected):
    assert HfModelSource().sniff(ref.replace("DIR", str(llama_directory))) is expected


def test_a_single_file_is_refused_with_what_is_supported(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"A single file is not read as a base model. Supported: Hugging Face checkp"):
        open_model(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "The directory has no config.json. Supported: "),
        (("adapter_config.json",), "The directory has no config.json; it is an adapter, not a base model."),
        (("a.gguf", "b.gguf"), "The directory has no config.json, only several GGUF files: give one of them."),
    ],
)
def test_directory_without_configuration_is_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError) as raised:
        open_model(tmp_path)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize("ref", ["model.bin", "no-such-model"])
def test_reference_that_no_source_knows_is_explained_with_what_is_supported(tmp_path, monkeypatch, ref):
    (tmp_path / "model.bin").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"Supported: Hugging Face checkpoints .* of LlamaForCausalLM"):
        given.open_model(ref, PluginHub(entry_points=()), download=False)


def test_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ModelError, match="There is no model directory"):
        open_model(tmp_path / "nowhere")


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read"), ("[]", "does not hold a JSON object")])
def test_configuration_that_is_no_json_object_is_refused(llama_directory, text, said):
    (llama_directory / "config.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        open_model(llama_directory)


def test_tokenizer_files_are_those_that_exist(llama_directory):
    assert open_model(llama_directory).tokenizer is None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "unrelated.txt"):
        (llama_directory / name).write_text("{}")
    names = [path.name for path in open_model(llama_directory).tokenizer.files]
    assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]


def test_summary_says_nothing_of_where_the_model_came_from(llama_directory):
    path = llama_directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "/home/someone/model"}))
    summary = open_model(llama_directory).summary
    assert not {"_name_or_path", "transformers_version"} & set(summary.config)
    assert str(llama_directory.parent) not in json.dumps(summary.config)


@pytest.fixture
def hub(llama_directory, monkeypatch):
    """A server that answers what huggingface_hub asks to download one model; `.asked` are the paths."""
    files = {path.name: path.read_bytes() for path in llama_directory.iterdir()}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, *, body: bool):
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            if self.path.startswith("/api/models/someone/tiny-llama/tree/"):
                tree = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in files.items()]
                content = json.dumps(tree).encode()
            elif self.path.startswith("/api/models/someone/tiny-llama"):
                siblings = [{"rfilename": file} for file in files]
                content = json.dumps({"id": "someone/tiny-llama", "sha": COMMIT, "siblings": siblings}).encode()
            elif name in files:
                content = files[name]
            else:
                content = None
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{name}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = asked
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("download", [False, True])
def test_network_is_reached_only_when_asked_to_download(cache, hub, download):
    # huggingface_hub reads its server's address when it is imported, so the download runs in a process of its own.
    code = (
        "from lora_core.errors import ModelError\n"
        "from lora_core.models.hf import HfModelSource\n"
        "try:\n"
        f"    model = HfModelSource().open('someone/tiny-llama', download={download})\n"
        "    print(model.summary.name, len(model.checkpoint.tensors))\n"
        "except ModelError as error:\n"
        "    print('refused', error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("tiny-llama 21" if download else "refused Model 'someone/tiny-llama' is neither")
    assert bool(hub.asked) is download
    assert (hub_cache.find_snapshot("someone/tiny-llama") is not None) is download
