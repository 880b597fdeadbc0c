import json

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
from hf_moe_lmc import MoeAligner, align, apply, from_aligned_pretrained, merge, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError, OutputError
from tests import families
from tests.alignment.planted import naive_aligned, naive_merge, same
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
    assert aligner.models.texts == ()
    alignment = aligner.align()
    assert alignment.symmetries == MoeAligner.from_pretrained(model, other).align().symmetries
    in_memory = aligner.merge(alignment, t=0.25)
    assert aligner.merge(alignment, t=0.25, output=tmp_path / "merged") == tmp_path / "merged"
    streamed = type(model).from_pretrained(tmp_path / "merged")
    assert type(in_memory) is type(model)
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
    report = aligner.evaluate(None, data, points=3, experts_implementation="eager")
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


# Every route takes the same options, and computes the same.

POINTS = {
    "t": (2, {"t": 0.3}, [(0.7, 0.3)]),
    "several t": (2, {"t": [0.25, 0.5, 1.0]}, [(0.75, 0.25), (0.5, 0.5), (0.0, 1.0)]),
    "shares": (2, {"shares": [3.0, 1.0]}, [(0.75, 0.25)]),
    "three": (3, {}, [(1 / 3,) * 3]),
    "three, shares": (3, {"shares": [1.0, 2.0, 5.0]}, [(0.125, 0.25, 0.625)]),
}
ROUTES = ["live", "folders", "mixed"]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three siblings with shared experts, scrambled and with noise; their folders; alignments of two and of three."""
    models, folder = [families.build("qwen2_moe", experts=5) for _ in range(3)], tmp_path_factory.mktemp("three")
    for seed, model in enumerate(models):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        scramble(model, seed)[0].save_pretrained(folder / str(seed), max_shard_size="40KB")
    folders = [folder / str(seed) for seed in range(3)]
    return models, folders, {2: [align(*models[:2])], 3: [*align(models[0], models[1:])]}


def along(route: str, models, folders, number: int):
    """The models of a route: all live, all folders, or the second from a folder."""
    places = {"live": models, "folders": folders, "mixed": [models[0], folders[1], models[2]]}[route]
    return places[:number]


@pytest.mark.parametrize("repairs", [[], ["norms"], ["norms", "gram"]], ids=str)
@pytest.mark.parametrize("points", POINTS)
def test_every_route_computes_the_same(three, points, repairs, tmp_path):
    """In memory as written, from live models as from folders, bit for bit; and what layers in float64 give."""
    models, folders, known = three
    number, options, shares = POINTS[points]
    specs = alignable_layers(models[0])
    states = [model.state_dict() for model in models[:number]]
    symmetries = [alignment.symmetries for alignment in known[number]]
    expected = [naive_merge(states, specs, point, repairs, symmetries, gauge=True) for point in shares]
    first = None
    for route in ROUTES:
        places = along(route, models, folders, number)
        live = merge(places[0], places[1:], alignment=known[number], repairs=repairs, **options)
        live = [model.state_dict() for model in (live if isinstance(live, list) else [live])]
        first = first or live
        out = merge(places[0], places[1:], alignment=known[number], repairs=repairs, output=tmp_path / route, **options)
        written = sorted(out.glob("t-*"), key=lambda folder: float(folder.name[2:])) or [out]
        loaded = [type(models[0]).from_pretrained(folder).state_dict() for folder in written]
        assert len(live) == len(loaded) == len(shares)
        for found in (live, loaded):
            assert all(same(own, one) for own, one in zip(found, first, strict=True))
        assert all((folder / "README.md").exists() for folder in written)
    for found, wanted in zip(first, expected, strict=True):
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [None, "gate", "none"])
def test_every_route_aligns_on_the_way(three, config, tmp_path):
    models, folders, _ = three
    given = {None: None, "gate": "gate", "none": [None]}[config]
    known = given if config == "none" else [align(*models[:2], config=config)]
    expected = merge(*models[:2], alignment=known, t=0.3).state_dict()
    for route in ROUTES:
        places = along(route, models, folders, 2)
        out = merge(places[0], places[1:], alignment=config, t=0.3, output=tmp_path / route)
        assert same(type(models[0]).from_pretrained(out).state_dict(), expected)
        assert same(merge(places[0], places[1:], alignment=config, t=0.3).state_dict(), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_takes_a_dtype_and_a_layout(three, route, tmp_path):
    models, folders, _ = three
    places, options = along(route, models, folders, 2), {"alignment": "none", "t": 0.3}
    wide = merge(places[0], places[1:], output=tmp_path / "out", dtype=torch.float64, layout="fused", **options)
    config = json.loads((wide / "config.json").read_text())
    assert config["dtype"] == "float64"
    expected = naive_merge([model.state_dict() for model in models[:2]], alignable_layers(models[0]), (0.7, 0.3))
    in_memory = [merge(places[0], places[1:], dtype=dtype, **options) for dtype in (torch.float64, "float64")]
    for found in (type(models[0]).from_pretrained(wide), *in_memory):
        assert found.dtype == found.config.dtype == torch.float64
        for name, tensor in found.state_dict().items():
            assert tensor.dtype == expected[name].dtype
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
    assert merge(places[0], places[1:], dtype="auto", **options).dtype == models[0].dtype == torch.float32
    with pytest.raises(OutputError, match="holds an earlier output"):
        merge(places[0], places[1:], output=wide, **options)
    merge(places[0], places[1:], output=wide, overwrite=True, **options)
    assert type(models[0]).from_pretrained(wide).dtype == torch.float32


@pytest.mark.parametrize(
    "options", [{"t": 0.3, "shares": [1.0, 1.0]}, {"t": [0.5, 0.5 + 1e-14]}, {"t": []}, {"t": 2.0}]
)
def test_points_that_are_none(three, options):
    models, _, known = three
    with pytest.raises(BadInputError):
        merge(*models[:2], alignment=known[2], **options)


@pytest.mark.parametrize(
    "option",
    [{"layout": "keptt"}, {"dtype": "float3"}, {"vocabulary": "comon"}, {"quantise": "int4"}, {"repairs": ["nroms"]},
     {"repairs": "norms"}, {"alignment": "gatee"}],
    ids=str,
)  # fmt: skip
def test_mistyped_names(three, option, tmp_path):
    with pytest.raises(BadInputError, match=r": there is no '\w+'; choose from "):
        merge(*three[1][:2], output=tmp_path / "out", **option)
    assert not [*tmp_path.iterdir()]


def test_several_models_take_no_t(three):
    models, _, known = three
    with pytest.raises(BadInputError, match="several models, and shares, take no t"):
        merge(models[0], models[1:], alignment=known[3], t=0.5)


def test_repairs_that_need_data_say_so(three, tmp_path):
    models, folders, known = three
    for repairs in (["moments"], "auto"):
        for places in (models, folders):
            with pytest.raises(BadInputError, match="repairs need calibration data"):
                merge(*places[:2], alignment=known[2], repairs=repairs, output=tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("repairs", [["moments"], "auto"], ids=str)
def test_every_route_takes_repairs_with_data(three, repairs, tmp_path):
    """And two as three models."""
    models, folders, known = three
    tokens = torch.randint(3, families.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": batch, "labels": batch} for batch in tokens.split(2)]
    for number in (2, 3):
        options = {"alignment": known[number], "repairs": repairs, "calibration": data}
        expected = merge(models[0], models[1:number], **options).state_dict()
        plain = merge(models[0], models[1:number], alignment=known[number]).state_dict()
        assert repairs == "auto" or not same(expected, plain)
        for route in ROUTES:
            first, *others = along(route, models, folders, number)
            out = merge(first, others, output=tmp_path / f"{route} {number}", **options)
            loaded = type(models[0]).from_pretrained(out).state_dict()
            for name, tensor in loaded.items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


@pytest.fixture
def instruct(tmp_path):
    """A model in float32 and one in bfloat16 with other settings; live, and in folders with small files."""
    models = [build("mixtral", seed=seed, dtype=dtype) for seed, dtype in ((0, torch.float32), (1, torch.bfloat16))]
    models[1].config.bos_token_id = 7
    models[1].generation_config.temperature, models[1].generation_config.do_sample = 0.25, True
    for side, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / side)
        (tmp_path / side / "chat_template.jinja").write_text(f"{{{{ '{side}' }}}}")
        (tmp_path / side / "tokenizer_config.json").write_text(json.dumps({"model_max_length": ord(side)}))
    return models, [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("route", ROUTES)
def test_at_1_the_result_is_the_other_rewritten(instruct, route, tmp_path):
    """Its weights, bit for bit, its configuration, settings of generation, dtype and tokenizer; at 0 the reference."""
    models, folders = instruct
    alignment = align(models[0], models[1:])
    places = along(route, [*models, None], [*folders, None], 2)
    out = merge(places[0], places[1:], alignment=alignment, t=[0.0, 1.0], output=tmp_path / "out")
    for t, (model, folder) in enumerate(zip(models, folders, strict=True)):
        wanted = model.state_dict()
        if t:
            wanted = naive_aligned(wanted, alignable_layers(model), alignment.symmetries)
            rewritten = apply(alignment, places[1], tmp_path / "applied")
            assert {file.name for file in rewritten.iterdir()} == {file.name for file in (out / "t-1").iterdir()}
        loaded = type(model).from_pretrained(out / f"t-{t}", dtype="auto")
        in_memory = merge(places[0], places[1:], alignment=alignment, t=float(t))
        for found in (loaded, in_memory):
            assert found.dtype == model.dtype
            assert same(found.state_dict(), wanted)
            assert found.config.bos_token_id == model.config.bos_token_id
            assert found.generation_config.temperature == model.generation_config.temperature
        if not isinstance(places[t], torch.nn.Module):
            small = ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json")
            assert all((out / f"t-{t}" / name).read_bytes() == (folder / name).read_bytes() for name in small)


def test_from_aligned_pretrained_keeps_the_settings_of_the_model(instruct):
    models, folders = instruct
    for name, align_to in (folders[::-1], models[::-1]):
        found = from_aligned_pretrained(name, align_to=align_to)
        assert found.dtype == torch.bfloat16
        assert found.config.bos_token_id == 7
        assert found.generation_config.temperature == 0.25
        assert found is not name


def test_between_the_ends_settings_are_those_of_the_reference(instruct, tmp_path):
    models, folders = instruct
    out = merge(*folders, t=0.5, force=True, output=tmp_path / "out")
    assert (out / "chat_template.jinja").read_bytes() == (folders[0] / "chat_template.jinja").read_bytes()
    for found in (type(models[0]).from_pretrained(out, dtype="auto"), merge(models[0], models[1:], t=0.5, force=True)):
        assert found.dtype == torch.float32
        assert found.config.bos_token_id == models[0].config.bos_token_id


@pytest.mark.parametrize("family", ["switch_transformers", "vitpose_backbone", "doge", "ernie4_5_moe"])
def test_every_tensor_is_reached(family):
    """Also of experts that are read as copies. Siblings: a merge leaves their scales alone."""
    reference, other = (families.build(family) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 1e-3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    other = scramble(other, seed=1)[0]
    alignment = align(reference, other, config="gate")
    states, specs = [reference.state_dict(), other.state_dict()], alignable_layers(reference)
    aligned = naive_aligned(states[1], specs, alignment.symmetries)
    merged = merge(reference, other, alignment=alignment, t=0.3).state_dict()
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            assert torch.equal(merged[name], torch.lerp(tensor, aligned[name], 0.3))


def test_apply_of_a_live_model_leaves_it_alone(three, tmp_path):
    models, folders, known = three
    before, (alignment,) = {k: v.clone() for k, v in models[1].state_dict().items()}, known[2]
    found = apply(alignment, models[1])
    assert same(models[1].state_dict(), before)
    assert same(found.state_dict(), naive_aligned(before, alignable_layers(models[1]), alignment.symmetries))
    assert apply(alignment, models[1], dtype=torch.float64).dtype == torch.float64
    for place in (models[1], folders[1]):
        out = apply(alignment, place, tmp_path / "out", overwrite=True)
        assert same(type(found).from_pretrained(out).state_dict(), found.state_dict())
