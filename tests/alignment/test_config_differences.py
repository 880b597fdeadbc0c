"""A difference of configurations is harmless only where the outputs stay."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_moe_lmc.alignment.config_differences import config_differences
from tests import families

# Plain RoPE, noise that decides, scaling by position, two kinds of layers, an encoder.
TRIED = ("qwen3_moe", "phimoe", "mistral4", "gemma4", "switch_transformers")
# Say of what class the model is, which is compared elsewhere, or in what form outputs come.
NOT_TRIED = {"id2label", "label2id", "model_type", "transformers_version", "return_dict"}
HARMLESS = {
    "unsloth_version": "2025.6",
    "unsloth_fixed": True,
    "pretraining_tp": 2,
    "tokenizer_class": "LlamaTokenizer",
    "model_name": "of-a-friend",
    "trust_remote_code": True,
    "max_window_layers": 7,
    "max_position_embeddings": 40960,
    "hidden_act": "swish",
    "router_jitter_noise": 0.3,
    "use_cache": False,
    "initializer_range": 0.5,
    "attention_dropout": 0.5,
    "pad_token_id": 3,
}


def perturbed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1 if isinstance(value, int) or value > 1 else value / 2 + 0.3
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, list | tuple):
        return [*value[:-1], perturbed(value[-1])] if value else [1]
    return 1


def leaves(config: dict, path: tuple = ()) -> list[tuple]:
    """Paths to all values that are no dictionaries."""
    return [
        leaf
        for key, value in config.items()
        for leaf in (leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)])
    ]


def with_config(model: PreTrainedModel, fields: dict) -> PreTrainedModel:
    """A model of these fields and the weights of `model`."""
    config = type(model.config).from_dict(fields)
    with torch.device("cpu"):
        other = type(model)(config).eval()
    other.set_experts_implementation("eager")
    other.load_state_dict(model.state_dict())
    return other


def harmful(a: Any, b: Any) -> list[str]:
    return [difference.name for difference in config_differences(a, b) if difference.harmful]


@pytest.fixture(scope="module")
def built():
    return {family: families.build(family) for family in TRIED}


def with_fields(model: PreTrainedModel, fields: dict) -> Any:
    """Fields and code of a model that need not fit its weights."""
    return SimpleNamespace(config=type(model.config).from_dict(fields), modules=model.modules)


@pytest.mark.parametrize("family", TRIED)
def test_a_difference_that_is_harmless_leaves_the_outputs(built, family):
    model = built[family]
    fields, expected = model.config.to_dict(), families.outputs(model, family)
    harmless = 0
    for path in leaves(fields):
        other = place = deepcopy(fields)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = perturbed(place[path[-1]])
        try:
            refused = bool(harmful(model, with_fields(model, other)))
        except Exception:  # refused by the configuration, each in its own way
            continue
        if not refused and {*path}.isdisjoint(NOT_TRIED):
            harmless += 1
            assert torch.equal(families.outputs(with_config(model, other), family), expected), path
    assert harmless > 3


@pytest.mark.parametrize("field", HARMLESS)
def test_fields_that_change_nothing(built, field):
    model = built["qwen3_moe"]
    other = with_config(model, model.config.to_dict() | {field: HARMLESS[field]})
    (difference,) = (
        config_differences(model, other) or [None] if field == "hidden_act" else config_differences(model, other)
    )
    assert difference is None or (difference.name == field and not difference.harmful)
    assert torch.equal(families.outputs(other, "qwen3_moe"), families.outputs(model, "qwen3_moe"))


@pytest.mark.parametrize(
    ("family", "fields", "refused"),
    [
        ("phimoe", {"router_jitter_noise": 0.3}, True),
        (
            "qwen3_moe",
            {"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            True,
        ),
        ("qwen3_moe", {"hidden_act": "gelu"}, True),
        ("switch_transformers", {"pad_token_id": 3}, True),
        ("qwen3_moe", {"norm_topk_prob": True}, True),
    ],
)
def test_what_matters_depends_on_the_model(built, family, fields, refused):
    config = built[family].config.to_dict()
    merged = {k: config[k] | v if isinstance(v, dict) else v for k, v in fields.items()}
    sides = [
        with_fields(built[family], config | own)
        for own in ({**merged, **{k: config[k] for k in list(fields)[:1]}}, merged)
    ]
    assert harmful(*sides) == list(fields)[:1] * refused


def test_a_field_that_is_known_and_one_that_is_not():
    """Of code without a source, every field is taken to be read."""
    scope: dict[str, Any] = {}
    exec("from torch import nn\nclass Typed(nn.Module): pass", scope | {"__name__": "typed"}, scope)
    a, b = scope["Typed"](), scope["Typed"]()
    a.config, b.config = {"unsloth_version": 1}, {"unsloth_version": 2}
    assert harmful(a, b) == ["unsloth_version"]
    assert not harmful(*(SimpleNamespace(config=x.config, modules=list) for x in (a, b)))


def configured(**fields: object) -> Any:
    return SimpleNamespace(config=fields, modules=list)


def test_configurations_of_parts():
    a = configured(text_config={"rope_theta": 3, "use_cache": True}, vision_config={"depth": 2})
    b = configured(text_config={"rope_theta": 5, "use_cache": False}, vision_config={"depth": 2})
    differences = config_differences(a, b)
    assert [difference.text for difference in differences if difference.harmful] == [
        "text_config.rope_theta is 3 in the reference, 5 in the other"
    ]
    assert [difference.name for difference in differences if not difference.harmful] == ["text_config.use_cache"]


@pytest.mark.parametrize(
    ("a", "b", "refused"),
    [
        ({0: "cat", 1: "dog"}, {0: "dog", 1: "cat"}, True),
        ({0: "cat", 1: "dog"}, {"0": "cat", "1": "dog"}, False),
        ({0: "cat", 1: "dog"}, {0: "LABEL_0", 1: "LABEL_1"}, False),
        ({0: "cat", 1: "dog"}, {0: "cat", 1: "dog", 2: "cow"}, True),
    ],
)
def test_names_of_labels(a, b, refused):
    """The numbers that Transformers gives to labels without names say nothing."""
    assert bool(harmful(configured(id2label=a), configured(id2label=b))) == refused


def test_long_values_stay_readable():
    layers = ["full_attention"] * 40
    others = [*layers[:30], "chunked", *layers[31:]]
    (difference,) = config_differences(configured(layer_types=layers), configured(layer_types=others))
    assert difference.text == "layer_types[30] is 'full_attention' in the reference, 'chunked' in the other"
    (difference,) = config_differences(configured(layer_types=layers), configured(layer_types=layers[1:]))
    assert len(difference.text) < 200
