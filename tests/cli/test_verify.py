import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc import cli, scramble
from tests import families, models


def save(model, folder):
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "moe_vit shared", "moe_gpt2 sparse"])
def model(request):
    name = request.param
    return models.build(name, dtype=torch.float32) if name in models.MODELS else families.build(name)


def test_a_scrambled_folder_is_equal_and_a_spoilt_one_is_not(model, tmp_path, capsys):
    before = save(model, tmp_path / "before")
    scrambled = save(scramble(model)[0], tmp_path / "scrambled")
    assert cli.main(["verify", before, scrambled]) == 0
    assert capsys.readouterr().out.startswith("equal up to rounding")
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if name.endswith("down_proj"))[1, 2, 3] *= -1
    spoilt = save(model, tmp_path / "spoilt")
    assert cli.main(["verify", before, spoilt, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"]
    assert any("changed by" in cause for cause in found["causes"])
    worst = max(found["layers"], key=lambda layer: layer["experts_difference"])
    assert worst["experts_difference"] > found["block_tolerance"]
    assert worst["num_experts"] > 1


def tokenizer(folder, size: int) -> None:
    words = {f"word{i}": i for i in range(size - 1)} | {"[UNK]": size - 1}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder)


def test_text_is_compared_where_there_is_a_tokenizer(tmp_path, capsys):
    model = models.build("mixtral", dtype=torch.float64)
    before = save(model, tmp_path / "before")
    tokenizer(before, models.VOCABULARY)
    after = save(scramble(model)[0], tmp_path / "after")
    text = tmp_path / "text"
    text.write_text("word3 word4 " * 40)
    assert cli.main(["verify", before, after, "--dtype", "float64", "--text", str(text)]) == 0
    assert "outputs on text inputs: " in capsys.readouterr().out
    assert cli.main(["verify", before, after]) == 0
    assert "outputs on text inputs: " in capsys.readouterr().out
    text.write_text("")
    assert cli.main(["verify", before, after, "--text", str(text)]) == 3
    assert "the text is empty" in capsys.readouterr().err


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, capsys):
    before = save(models.build("mixtral", dtype=torch.float32), tmp_path)
    tokenizer(before, models.VOCABULARY + 5)
    assert cli.main(["verify", before, before]) == 3
    assert "the model's vocabulary is 31" in capsys.readouterr().err


def test_text_without_a_tokenizer_is_refused(tmp_path, capsys):
    before = save(models.build("mixtral", dtype=torch.float32), tmp_path / "model")
    (tmp_path / "text").write_text("a")
    assert cli.main(["verify", before, before, "--text", str(tmp_path / "text")]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no tokenizer in ")
    assert cli.main(["verify", before, before, "--text", str(tmp_path / "absent")]) == 3
    assert "cannot be read" in capsys.readouterr().err


def test_models_of_two_classes_are_incompatible(tmp_path, capsys):
    one, other = (save(models.build(name, dtype=torch.float32), tmp_path / name) for name in ("mixtral", "qwen2_moe"))
    assert cli.main(["verify", one, other]) == 4
    assert capsys.readouterr().err.count("error: before is a MixtralForCausalLM") == 1


def test_a_missing_tensor_is_refused_and_named(tmp_path, capfd):
    """And nothing but the one line is shown."""
    folder = save(models.build("mixtral", dtype=torch.float32), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    assert cli.main(["verify", folder, folder]) == 3
    assert capfd.readouterr().err == f"error: {folder}: lm_head.weight is missing; download or save the model again\n"


def test_files_that_cannot_be_read_are_refused(tmp_path, capsys):
    folder = save(models.build("mixtral", dtype=torch.float32), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert cli.main(["verify", folder, folder]) == 3
    assert "model.safetensors is a git-lfs pointer" in capsys.readouterr().err
    (tmp_path / "model.safetensors").unlink()
    assert cli.main(["verify", folder, folder]) == 3
