"""A difference of configurations is harmless only where the outputs stay."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MixtralForSequenceClassification, PreTrainedModel

from benchmarks.config_fields import check
from hf_moe_lmc.alignment.config_differences import config_differences
from tests import families

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
    return {family: families.build(family) for family in ("qwen3_moe", "phimoe", "switch_transformers", "jamba")}


def with_fields(model: PreTrainedModel, fields: dict) -> Any:
    """Fields and code of a model that need not fit its weights."""
    return SimpleNamespace(config=type(model.config).from_dict(fields), modules=model.modules)


@pytest.mark.parametrize(("family", "needless"), {"qwen3_moe": [], "phimoe": ["num_experts_per_tok"]}.items())
def test_a_difference_is_refused_where_outputs_change(family, needless):
    """But for what is read and not used: PhiMoE's router takes two experts, whatever its configuration says."""
    result = check(family)
    assert result.unseen == []
    assert result.needless == needless
    assert {"rms_norm_eps", "rope_parameters.rope_theta"} <= {*result.refused}
    assert len(result.accepted) > 10


def test_a_difference_that_is_passed_over_is_found(monkeypatch):
    monkeypatch.setattr("hf_moe_lmc.alignment.config_differences.HARMLESS", re.compile("rms_norm_eps"))
    assert check("mixtral", frozenset({"rms_norm_eps", "attention_dropout"})).unseen == ["rms_norm_eps"]


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
        (
            "qwen3_moe",
            {"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            False,
        ),
        ("qwen3_moe", {"is_encoder_decoder": True}, False),
        ("switch_transformers", {"pad_token_id": 3}, True),
        ("jamba", {"max_position_embeddings": 40960}, False),  # it has no rotary embeddings
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


def test_padding_decides_which_token_is_classified():
    config = families.configuration("mixtral", 4)
    model = families.draw_weights(MixtralForSequenceClassification(config).eval(), 4)
    other = with_config(model, config.to_dict() | {"pad_token_id": 3})
    assert harmful(model, other) == ["pad_token_id"]
    ids = torch.tensor([[5, 6, 3, 3, 7, 3, 3]])
    assert not torch.equal(model(ids).logits, other(ids).logits)


def test_a_field_that_is_known_and_one_that_is_not():
    """Of code without a source, every field is taken to be read."""
    scope: dict[str, Any] = {}
    exec(
        "from torch import nn\nclass Typed(nn.Module):\n def forward(self): pass", scope | {"__name__": "typed"}, scope
    )
    a, b = scope["Typed"](), scope["Typed"]()
    a.config, b.config = {"unsloth_version": 1}, {"unsloth_version": 2}
    assert harmful(a, b) == ["unsloth_version"]
    assert not harmful(*(SimpleNamespace(config=x.config, modules=list) for x in (a, b)))


def configured(**fields: object) -> Any:
    return SimpleNamespace(config=fields, modules=list)


def test_configurations_of_parts():
    a = configured(text_config={"sliding_window": 3, "use_cache": True}, vision_config={"depth": 2})
    b = configured(text_config={"sliding_window": 5, "use_cache": False}, vision_config={"depth": 2})
    differences = config_differences(a, b)
    assert [difference.text for difference in differences if difference.harmful] == [
        "text_config.sliding_window is 3 in the reference, 5 in the other"
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
