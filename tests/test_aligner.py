import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    PreTrainedModel,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

import hf_moe_lmc
from hf_moe_lmc import MoeAligner, from_aligned_pretrained, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.connectivity import repaired_path
from hf_moe_lmc.errors import IncompatiblePairError
from tests import families
from tests.models import VOCABULARY, build, logits

NAMES = ["mixtral", "qwen2_moe", "moe_vit sparse", "moe_gpt2 shared"]


@pytest.fixture(params=NAMES)
def pair(request, tmp_path):
    """(model, scrambled copy, their folders)."""
    model, other = build(request.param, dtype=torch.float32), build(request.param, dtype=torch.float32)
    scramble(other, seed=1)
    folders = [tmp_path / "a", tmp_path / "b"]
    for each, folder in zip((model, other), folders, strict=True):
        each.save_pretrained(folder, max_shard_size="20KB")
    return model, other, folders


def same_weights(a, b) -> bool:
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_folders_live_models_and_streams_give_the_same(pair, tmp_path):
    model, other, folders = pair
    aligner = MoeAligner.from_pretrained(*folders)
    assert aligner.differences == ()
    alignment = aligner.align()
    assert alignment.symmetries == MoeAligner.from_pretrained(model, other).align().symmetries
    in_memory = aligner.merge(alignment, t=0.25)
    streamed = aligner.merge(alignment, t=0.25, output=tmp_path / "merged")
    assert type(in_memory) is type(streamed) is type(model)
    assert "aligned and merged" in (tmp_path / "merged/README.md").read_text()
    assert same_weights(in_memory, model)
    assert same_weights(streamed, model)


def test_from_aligned_pretrained(pair):
    """At t = 1 the other model, which computes what it computed; a live model is not changed."""
    model, other, folders = pair
    before = logits(other)
    aligned = from_aligned_pretrained(folders[1], align_to=folders[0])
    assert same_weights(aligned, model)
    assert same_weights(from_aligned_pretrained(other, align_to=model), model)
    assert torch.equal(logits(other), before)
    assert not same_weights(aligned, other)


def sequence_classifier() -> PreTrainedModel:
    config = MixtralConfig(
        hidden_size=12,
        intermediate_size=7,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=5,
        vocab_size=VOCABULARY,
        num_labels=3,
    )
    return MixtralForSequenceClassification(config)


def image_text_model() -> PreTrainedModel:
    """A vision tower beside a Mixture-of-Experts language model."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 7,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 4,
        "deepstack_visual_indexes": [1],
        "num_position_embeddings": 16,
    }
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision))


@pytest.mark.parametrize(
    ("auto", "make"),
    [
        (AutoModelForSequenceClassification, sequence_classifier),
        (AutoModelForSeq2SeqLM, lambda: families.build("switch_transformers")),
        (AutoModelForImageTextToText, image_text_model),
    ],
)
def test_any_auto_class(auto, make, tmp_path):
    """A scrambled copy merges into the original; the output loads by its Auto class."""
    model = make()
    model.save_pretrained(tmp_path / "a")
    other = scramble(auto.from_pretrained(tmp_path / "a"), seed=1)[0]
    other.save_pretrained(tmp_path / "b")
    assert not same_weights(other, model)
    MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b").merge(output=tmp_path / "merged")
    merged = auto.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(model)
    assert same_weights(merged, model)


def test_evaluate_reads_the_other_from_disk(tmp_path):
    model, other = build("mixtral", dtype=torch.float32), build("mixtral", dtype=torch.float32)
    scramble(other, seed=1)
    model.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    tokens = torch.randint(0, model.config.vocab_size, (6, 12), generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"input_ids": row, "labels": row} for row in tokens], batch_size=3)
    aligner = MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b")
    report = aligner.evaluate(None, data, t=3, load={"experts_implementation": "eager"}, resamples=10)
    assert report.curves["aligned"].barrier.loss_barrier == pytest.approx(0, abs=1e-6)
    assert report.curves["naive"].barrier.loss_barrier > 1e-3


def test_a_pair_that_does_not_fit_is_refused_before_weights_are_read(tmp_path):
    build("mixtral").save_pretrained(tmp_path / "a")
    build("qwen2_moe").save_pretrained(tmp_path / "b")
    with pytest.raises(IncompatiblePairError, match="reference is a MixtralForCausalLM"):
        MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b")


def test_all_public_names_exist():
    for name in hf_moe_lmc.__all__:
        assert getattr(hf_moe_lmc, name).__doc__


@pytest.mark.parametrize("family", NAMES)
def test_norms_kept_on_disk_and_in_memory_are_those_of_the_path(family, tmp_path):
    """Of one formula: the stream works expert by expert, the path layer by layer."""
    models = [build(family, seed=seed, dtype=torch.float32) for seed in (0, 1)]
    for folder, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / folder)
    aligner = MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b")
    alignment = aligner.align()
    live = aligner.merge(alignment, t=0.3, keep_norms=True).state_dict()
    streamed = aligner.merge(alignment, t=0.3, output=tmp_path / "merged", keep_norms=True).state_dict()
    specs = alignable_layers(models[0])
    aligned = apply_symmetries(models[1].state_dict(), specs, alignment.symmetries)
    path = repaired_path(models[0].state_dict(), aligned, specs, ["norms"])(0.3)
    plain = aligner.merge(alignment, t=0.3).state_dict()
    for name, tensor in live.items():
        torch.testing.assert_close(tensor, path[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, streamed[name])
    assert any(not torch.allclose(tensor, plain[name], rtol=1e-2) for name, tensor in live.items())
