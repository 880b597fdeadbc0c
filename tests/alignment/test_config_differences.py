"""Every field of every family is taken to matter, but for a short list."""

import math
from copy import deepcopy
from typing import Any

import pytest

from hf_moe_lmc.alignment.config_differences import config_differences
from tests import families

# Written down again, so that a wider pattern in the package is noticed here.
HARMLESS = {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    *("transformers_version", "_name_or_path", "architectures", "dtype", "problem_type", "use_cache"),
    *("return_dict", "output_hidden_states", "output_attentions", "output_router_logits"),
    *("initializer_range", "initializer_factor", "init_std"),
    *("attention_dropout", "classifier_dropout", "resid_pdrop", "emb_pdrop", "attn_pdrop", "dropout_rate", "dropout"),
    *("activation_dropout", "hidden_dropout", "embd_pdrop", "encoder_layerdrop", "decoder_layerdrop"),
    *("router_aux_loss_coef", "aux_loss_coef", "aux_loss_alpha", "router_z_loss_coef", "moe_aux_loss_coeff"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
# A few of those whose names resemble the harmless ones, or that merge tools overlook.
MATTER = {
    *("moe_token_dropout", "router_jitter_noise", "output_multiplier", "output_gate_type", "decoder_start_token_id"),
    *("num_experts_per_tok", "norm_topk_prob", "rope_theta", "rope_type", "rms_norm_eps", "sliding_window"),
    *("layer_types", "tie_word_embeddings", "hidden_act", "routed_scaling_factor", "topk_group", "n_group"),
    *("scoring_func", "num_attention_heads", "head_dim", "logits_scaling", "max_position_embeddings", "swiglu_limit"),
}


def perturbed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 0 if value == math.inf else value + 1
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


@pytest.fixture(scope="module")
def configurations():
    return {family: families.configuration(family, 12).to_dict() for family in families.available()}


def test_every_field_of_every_family(configurations):
    seen, wrong = set(), []
    for family, config in configurations.items():
        for path in leaves(config):
            if {"id2label", "label2id"} & {*path}:
                continue
            other = deepcopy(config)
            place = other
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = perturbed(place[path[-1]])
            harmful, harmless = config_differences(config, other)
            field = path[-1]
            seen.add(field)
            positions = field == "pad_token_id" and config.get("is_encoder_decoder")
            expected = (0, 1) if field in HARMLESS and not positions else (1, 0)
            if (len(harmful), len(harmless)) != expected or field not in (harmful or harmless)[0]:
                wrong.append((family, path))
    assert not wrong
    assert seen >= MATTER - {"rope_theta"}


def test_a_field_that_one_lacks(configurations):
    config = configurations["qwen3_moe"]
    other = {key: value for key, value in config.items() if key != "norm_topk_prob"}
    assert config_differences(config, other)[0] == [
        f"norm_topk_prob is {config['norm_topk_prob']} in the reference, None in the other"
    ]


def test_configurations_of_parts(configurations):
    config = {"text_config": configurations["qwen3_moe"], "vision_config": {"depth": 2}}
    other = deepcopy(config)
    other["text_config"]["num_experts_per_tok"] = 5
    other["text_config"]["use_cache"] = not config["text_config"]["use_cache"]
    harmful, harmless = config_differences(config, other)
    assert harmful == ["text_config.num_experts_per_tok is 3 in the reference, 5 in the other"]
    assert [line.split()[0] for line in harmless] == ["text_config.use_cache"]


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
    assert bool(config_differences({"id2label": a}, {"id2label": b})[0]) == refused


def test_long_values_stay_readable():
    layers = ["full_attention"] * 40
    harmful, _ = config_differences({"layer_types": layers}, {"layer_types": [*layers[:30], "chunked", *layers[31:]]})
    assert harmful == ["layer_types[30] is 'full_attention' in the reference, 'chunked' in the other"]
    harmful, _ = config_differences({"layer_types": layers}, {"layer_types": layers[1:]})
    assert len(harmful[0]) < 200
