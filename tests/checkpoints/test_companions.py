"""The small files beside the weights."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hf_moe_lmc import align, apply
from hf_moe_lmc.checkpoints import find_companions
from hf_moe_lmc.errors import BadInputError
from tests.checkpoints.faulty import edit_config, edit_json

KNOWN = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "SYSTEM_PROMPT.txt",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.md",
    "NOTICE.txt",
    "USE_POLICY.md",
)
LEFT = {
    "tokenization_x.py": "code is never copied",
    "training_args.bin": "pickles are never read or copied",
    "optimizer.pt": "pickles are never read or copied",
    "tokenizer.pkl": "pickles are never read or copied",
    "consolidated.safetensors": "other weights",
    "model-q4.gguf": "other weights",
    "pytorch_model.bin.index.json": "other weights",
    "trainer_state.json": "not known to belong to a model",
    "tokenizer.key": "not known to belong to a model",
    "notes.txt": "not known to belong to a model",
    "original/": "not known to belong to a model",
}
SILENT = ("README.md", ".gitattributes", "hf_moe_lmc_manifest.json")


def put(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        if name.endswith("/"):
            file.mkdir()
            (file / "params.json").write_text("{}")
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}" if name.endswith(".json") else f"content of {name}")


def test_every_file_is_copied_or_named(single, tmp_path):
    put(single, *KNOWN, *LEFT, *SILENT)
    found = find_companions(single)
    assert found.copied.keys() == {"config.json", *KNOWN}
    assert {name: reason.partition(";")[0] for name, reason in found.left_behind.items()} == LEFT
    (tmp_path / "out").mkdir()
    found.copy(tmp_path / "out")
    assert all((tmp_path / "out" / name).read_bytes() == (single / name).read_bytes() for name in KNOWN)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        Path(name).name for name in found.copied
    }


def test_files_that_were_not_downloaded_are_named(single):
    found = find_companions(single, ["configuration_x.py", "tekken.json", "model.safetensors", "config.json"])
    assert found.left_behind == {"configuration_x.py": "code is never copied", "tekken.json": "not a plain file"}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "LICENSE", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("place", ["beside", "absolute", "blobs"])
def test_a_link_out_of_the_folder_is_not_followed(single, tmp_path, name, place):
    secret = tmp_path / ("elsewhere/blobs/secret" if place == "blobs" else "secret")
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("my key")
    (single / name).unlink(missing_ok=True)
    (single / name).parent.mkdir(exist_ok=True)
    target = secret if place == "absolute" else os.path.relpath(secret, (single / name).parent)
    (single / name).symlink_to(target)
    found = find_companions(single)
    assert name not in found.copied
    assert found.left_behind[name] == "a link out of the folder"


def test_links_within_the_folder_and_the_cache(single, tmp_path):
    """As huggingface_hub keeps a snapshot."""
    put(single, "tokenizer.json", "LICENSE")
    (single / "NOTICE").symlink_to("LICENSE")
    repository = tmp_path / "models--org--a"
    (repository / "blobs").mkdir(parents=True)
    folder = shutil.copytree(single, repository / "snapshots" / ("c" * 40), symlinks=True)
    shutil.move(folder / "tokenizer.json", repository / "blobs" / "0")
    (folder / "tokenizer.json").symlink_to("../../blobs/0")
    assert find_companions(folder).copied.keys() >= {"tokenizer.json", "LICENSE", "NOTICE"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a plain file"),
        (lambda file: file.symlink_to("/dev/zero"), "not a plain file"),
        (lambda file: file.symlink_to("absent"), "not a plain file"),
        (lambda file: (file.touch(), os.truncate(file, 10**9)), "larger than 100000000 bytes"),
    ],
)
def test_no_plain_small_file(single, make, reason):
    make(single / "tokenizer.json")
    assert find_companions(single).left_behind["tokenizer.json"] == reason


def test_code_is_left_behind_with_the_fields_that_name_it(single, tmp_path):
    put(single, "configuration_x.py")
    code = {"AutoConfig": "configuration_x.X", "AutoModel": "modeling_x.X", "AutoTokenizer": ["tokenization_x.X", None]}
    edit_config(auto_map=code | {"AutoProcessor": "org/other--processing_x.X"})(single)
    edit_config(_attn_implementation_internal="someone/kernels", note={"auto_map": {}})(single)
    (single / "tokenizer_config.json").write_text(json.dumps({"auto_map": code, "eos_token": "ü"}))
    found = find_companions(single)
    assert found.left_behind == {
        "configuration_x.py": "code is never copied",
        **dict.fromkeys(
            ("modeling_x.py", "tokenization_x.py"),
            "code is never copied; config.json loses the auto_map that names it",
        ),
    }
    (tmp_path / "out").mkdir()
    found.copy(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_bytes())
    original = json.loads((single / "config.json").read_bytes())
    for field in ("auto_map", "_attn_implementation_internal"):
        del original[field]
    assert written == original | {"note": {}}
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_bytes()) == {"eos_token": "ü"}


def test_damaged_settings(single):
    (single / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadInputError, match=r"tokenizer_config\.json is not valid JSON"):
        find_companions(single)


def test_apply(single, saved, tmp_path):
    """All the way: what a checkpoint brings, and what it does not."""
    put(single, "tekken.json", "modeling_x.py", "notes.txt")
    edit_json(single / "config.json", lambda values: values.update(auto_map={"AutoModel": "modeling_x.X"}))
    out = tmp_path / "out"
    apply(align(saved / "single", single), single, out)
    assert (out / "tekken.json").read_bytes() == b"{}"
    assert not (out / "modeling_x.py").exists()
    assert not (out / "notes.txt").exists()
    assert "auto_map" not in json.loads((out / "config.json").read_bytes())
