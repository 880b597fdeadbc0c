"""Faults of model.safetensors.index.json."""

import json

import pytest

from tests.checkpoints.faulty import INDEX, edit_index, edit_json

ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
LAST = "model-00003-of-00003.safetensors"
CONTENTS = {
    "empty": (b"", "is not valid JSON"),
    "not JSON": (b"{weight_map}", "is not valid JSON"),
    "cut off": (b'{"metadata": {"total_size": 17232}, "weight_map": {"lm_head.weight": "mod', "is not valid JSON"),
    "UTF-16": ('{"weight_map": {}}'.encode("utf-16"), "is not UTF-8 text"),
    "a list": (b"[]", "holds a JSON list"),
    "null": (b"null", "holds a JSON NoneType"),
    "nested": (b'{"weight_map":' + b"[" * 100_000, "is nested too deeply"),
    "duplicate keys": (b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "key 'a' occurs twice"),
    "no weight_map": (b'{"metadata": {}}', "weight_map is missing or empty"),
    "empty weight_map": (b'{"weight_map": {}}', "weight_map is missing or empty"),
    "a list of keys": (b'{"weight_map": ["lm_head.weight"]}', "weight_map is missing or empty"),
}


@pytest.mark.parametrize("fault", CONTENTS)
def test_no_index(sharded, refused, fault):
    content, words = CONTENTS[fault]
    (sharded / INDEX).write_bytes(content)
    refused(sharded, INDEX, words)


@pytest.mark.parametrize(
    "name",
    [
        "../sharded/model-00003-of-00003.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "model\0.safetensors",
        "..",
        "",
        "pytorch_model.bin",
        "model\n.safetensors",
        f"{'m' * 250}.safetensors",
        None,
        3,
        ["model-00003-of-00003.safetensors"],
        {"name": "model-00003-of-00003.safetensors"},
    ],
)
def test_a_name_that_leaves_the_folder_is_never_followed(sharded, refused, name):
    edit_index(lambda weight_map: weight_map.update({ROUTER: name}))(sharded)
    refused(sharded, INDEX, "is not the name of a .safetensors file beside it")


def test_an_absolute_name_of_the_right_file(sharded, refused):
    edit_index(lambda weight_map: weight_map.update({ROUTER: str(sharded / LAST)}))(sharded)
    refused(sharded, INDEX, "is not the name of a .safetensors file beside it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(absent=LAST), [LAST, "absent, listed there", "is missing"]),
        (lambda m: m.update({ROUTER: "absent.safetensors"}), ["absent.safetensors", "is missing"]),
        (lambda m: m.pop(ROUTER), [LAST, ROUTER, "is not listed"]),
        (lambda m: m.update({ROUTER: "model-00001-of-00003.safetensors"}), [LAST, ROUTER, "is not listed"]),
    ],
    ids=["absent tensor", "absent file", "tensor left out", "tensor of another file"],
)
def test_index_and_shards_disagree(sharded, refused, change, words):
    edit_index(change)(sharded)
    refused(sharded, *words)


def test_an_endless_index_is_not_read(sharded, refused):
    with (sharded / INDEX).open("r+b") as file:
        file.truncate(10**10)
    refused(sharded, INDEX, "is no metadata file")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["metadata"].update(total_size=1),
        lambda index: index["metadata"].update(total_size="?"),
        lambda index: index.pop("metadata"),
        lambda index: index.update(extra=[1]),
    ],
    ids=["wrong total_size", "total_size of no number", "no metadata", "more than is known"],
)
def test_harmless(sharded, accepted, change):
    edit_json(sharded / INDEX, change)
    accepted(sharded)


def test_one_file_with_an_index(single, accepted):
    """As a few repositories have it."""
    from safetensors import safe_open

    with safe_open(single / "model.safetensors", "pt") as file:
        weight_map = dict.fromkeys(file.keys(), "model.safetensors")
    (single / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    accepted(single)
