"""Faults of the set of tensors, of their shapes and of their dtypes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import models
from tests.checkpoints.faulty import (
    edit_config,
    edit_tensor,
    edit_tensors,
    failed,
    shard_of,
    shards,
    worked,
)

ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.2.w2.weight"
LAST_EXPERT = "model.layers.1.block_sparse_moe.experts.4.w1.weight"
ATTENTION = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ROUTER, "model.layers.1.mlp.gate.weight is missing"),
        (EXPERT, "model.layers.0.mlp.experts"),
        (LAST_EXPERT, "model.layers.1.mlp.experts"),
        (ATTENTION, f"{ATTENTION} is missing"),
        (NORM, f"{NORM} is missing"),
        (FINAL_NORM, f"{FINAL_NORM} is missing"),
        (HEAD, f"{HEAD} is missing"),
        (EMBEDDING, f"{EMBEDDING} is missing"),
    ],
)
def test_missing(checkpoint, refused, key, words):
    edit_tensors(key, lambda tensors: tensors.pop(key))(checkpoint)
    refused(checkpoint, words)


def all_of(part: str):
    """Remove every tensor whose key holds `part`."""
    return lambda tensors: [tensors.pop(key) for key in [*tensors] if part in key]


@pytest.mark.parametrize("part", ["layers.1.", "experts", "experts.4.", ".w3.", "self_attn", "block_sparse_moe"])
def test_many_missing(single, refused, part):
    edit_tensors(ROUTER, all_of(part))(single)
    refused(single, "model.layers.")


def test_no_tensor_at_all(single, refused):
    edit_tensors(ROUTER, lambda tensors: tensors.clear())(single)
    refused(single, "is missing")


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.2.self_attn.k_proj.weight",
        "model.layers.0.block_sparse_moe.experts.5.w1.weight",
        "model.layers.0.block_sparse_moe.shared_expert.w1.weight",
        "lora_A.weight",
        "",
    ],
)
def test_more_than_the_model_has(checkpoint, refused, key):
    edit_tensors(NORM, lambda tensors: tensors.update({key: torch.ones(7, 12)}))(checkpoint)
    # A sixth w1 is no less strange than no sixth w3.
    refused(checkpoint, ".safetensors: ", key.replace("5.w1", "0.w3"))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (ROUTER, lambda tensor: tensor.T),
        (EXPERT, lambda tensor: tensor.T),
        (HEAD, lambda tensor: tensor.T),
        (NORM, lambda tensor: tensor[0]),
        (ROUTER, lambda tensor: tensor[0, 0]),
        (EXPERT, lambda tensor: tensor[0, 0]),
        (ATTENTION, lambda tensor: tensor[None]),
        (EXPERT, lambda tensor: tensor[None]),
        (ROUTER, lambda tensor: tensor.flatten()),
        (EXPERT, lambda tensor: tensor.flatten()),
        (ROUTER, lambda tensor: tensor[:0]),
        (EXPERT, lambda tensor: tensor[:0]),
        (ROUTER, lambda tensor: tensor[:-1]),
        (LAST_EXPERT, lambda tensor: tensor[:-1]),
        (EMBEDDING, lambda tensor: torch.cat([tensor, tensor[:1]])),
        (FINAL_NORM, lambda tensor: tensor.repeat(2)),
    ],
)
def test_of_another_shape(checkpoint, refused, key, change):
    edit_tensor(key, change)(checkpoint)
    refused(checkpoint, f"{shard_of(checkpoint, key)}: {key} ", "shape")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("base_model.model.", "merge_and_unload"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("pretrained_model.", "TRL"),
    ],
)
def test_wrapped_keys_are_named_with_the_cure(single, refused, part, words):
    edit_tensors(ROUTER, lambda tensors: [tensors.update({part + key: tensors.pop(key)}) for key in [*tensors]])(single)
    refused(single, "model.safetensors: ", f"{part}lm_head.weight: {part} is of", words)


def test_a_part_of_the_model_that_is_wrapped(single, refused):
    wrapped = NORM.replace("layers.1.", "layers.1._orig_mod.")
    edit_tensors(NORM, lambda tensors: tensors.update({wrapped: tensors.pop(NORM)}))(single)
    refused(single, wrapped, "torch.compile")


@pytest.mark.parametrize("key", ["v_head.summary.weight", "model.layers.0.self_attn._extra_state"])
def test_what_a_training_run_adds(single, refused, key):
    edit_tensors(NORM, lambda tensors: tensors.update({key: torch.ones(7, 12)}))(single)
    refused(single, key, "save the ")


def test_in_two_shards(sharded, refused):
    tensor = load_file(shard_of(sharded, ROUTER))[ROUTER]
    other = shards(sharded)[0]
    save_file(load_file(other) | {ROUTER: tensor}, other)
    refused(sharded, other.name, ROUTER, "is not listed there by")


def test_under_two_names(single, refused):
    """The key of the file and the module name, which mean the same."""
    edit_tensors(ROUTER, lambda tensors: tensors.update({"model.layers.1.mlp.gate.weight": tensors[ROUTER].clone()}))(
        single
    )
    refused(single, "are both the model's model.layers.1.mlp.gate.weight")


def test_fused_and_per_expert(single, refused):
    fused = {"model.layers.0.mlp.experts.down_proj": torch.ones(5, 12, 7)}
    edit_tensors(ROUTER, lambda tensors: tensors.update(fused))(single)
    refused(single, "model.layers.0.mlp.experts.down_proj")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize("key", [EXPERT, ROUTER, NORM])
def test_values_of_another_kind(single, refused, key, dtype):
    edit_tensor(key, lambda tensor: tensor.to(dtype))(single)
    refused(single, "model.safetensors: ", f" holds {dtype}", "16-bit checkpoint")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bits_without_a_word_in_the_configuration(checkpoint, refused, dtype):
    edit_tensor(EXPERT, lambda tensor: tensor.to(dtype))(checkpoint)
    refused(checkpoint, ".safetensors: ", EXPERT, f"holds {dtype}", "16-bit checkpoint")


@pytest.mark.parametrize("method", ["fp8", "gptq", "unheard_of"])
def test_plain_weights_whatever_the_configuration_says(single, accepted, method):
    """Left over by a program that dequantised them; it would keep Transformers from loading the result."""
    edit_config(quantization_config={"quant_method": method})(single)
    accepted(single)


def test_mixed_dtypes_are_kept(single, accepted, saved):
    def mix(tensors):
        for number, key in enumerate(sorted(tensors)):
            tensors[key] = tensors[key].to([torch.bfloat16, torch.float32, torch.float16][number % 3])

    edit_tensors(ROUTER, mix)(single)
    merged = load_file(accepted(single) / "model.safetensors")
    # The reference's dtypes; all its tensors are float32.
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}


def test_mixed_dtypes_of_the_reference(single, saved, tmp_path, capsys):
    def halve(tensors):
        for key in tensors:
            if "norm" in key or key in (ROUTER, EMBEDDING):
                tensors[key] = tensors[key].bfloat16()

    edit_tensors(ROUTER, halve)(single)
    worked(capsys, tmp_path / "out", "merge", single, saved / "single")
    kept = {key: tensor.dtype for key, tensor in load_file(single / "model.safetensors").items()}
    assert {key: tensor.dtype for key, tensor in load_file(tmp_path / "out" / "model.safetensors").items()} == kept


@pytest.fixture
def tied(tmp_path):
    """Two folders of one model with tied embeddings: as saved, without the head; and with it."""
    model = models.mixtral()
    model.config.tie_word_embeddings = True
    model = type(model)(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    for name in ("absent", "present"):
        model.save_pretrained(tmp_path / name)
    embedding = model.model.embed_tokens.weight.detach().clone()
    edit_tensors(ROUTER, lambda tensors: tensors.update({HEAD: embedding}))(tmp_path / "present")
    assert HEAD not in load_file(shards(tmp_path / "absent")[0])
    return tmp_path


@pytest.mark.parametrize("pair", [("absent", "present"), ("present", "absent"), ("present", "present")])
def test_tied_and_absent(tied, capsys, pair):
    """Merged with itself a model stays what it is; the reference says which keys are written."""
    reference, other = (tied / name for name in pair)
    worked(capsys, tied / "out", "merge", reference, other)
    expected, found = (load_file(folder / "model.safetensors") for folder in (reference, tied / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    model = AutoModelForCausalLM.from_pretrained(tied / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tied_and_missing_altogether(tied, refused):
    edit_tensors(EMBEDDING, lambda tensors: tensors.pop(EMBEDDING))(tied / "absent")
    refused(tied / "absent", "is missing")


def test_tied_by_name_only(tied, capsys):
    """Transformers unties them and warns; the reference holds one of them, so the other's head would be lost."""
    edit_tensor(HEAD, lambda tensor: tensor + 1)(tied / "present")
    found = failed(capsys, tied / "out", "merge", tied / "absent", tied / "present")
    assert found.code == 4
    assert HEAD in found.line
    assert EMBEDDING in found.line


def test_saved_from_the_model_without_its_head(single, refused):
    """Keys without their first part are known to Transformers; the head is missing all the same."""

    def strip(tensors):
        for key in [*tensors]:
            tensor = tensors.pop(key)
            if key != HEAD:
                tensors[key.removeprefix("model.")] = tensor

    edit_tensors(ROUTER, strip)(single)
    refused(single, f"{HEAD} is missing")
