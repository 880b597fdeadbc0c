import json
import math
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.repairs import repaired_name
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from hf_moe_lmc import align, scramble
from hf_moe_lmc.connectivity import LiveWeights, evaluate_path
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from tests.connectivity import finetuned
from tests.models import build, inputs


def size(model) -> int:
    """Bytes of its weights."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


ONLY_ALIGNED = {"arrangements": ("aligned",), "resamples": 50}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def evaluate(a, b, accelerator, points=3, alignment=None, family="mixtral", **options):
    data = finetuned.loader(0, 12, family=family)
    return evaluate_path(a, b, alignment, data, points, accelerator=accelerator, **(ONLY_ALIGNED | options))


@pytest.mark.parametrize("family", finetuned.FAMILIES)
def test_a_scrambled_sibling(family, accelerator):
    """A large barrier as it is; aligned, that of the sibling before it was scrambled."""
    a, b = finetuned.pair(family)
    scrambled, _ = scramble(deepcopy(b), seed=3)
    before, after = (evaluate(a, other, accelerator, family=family) for other in (b, scrambled))
    for name in ("aligned", "aligned + norms"):
        assert after.curves[name].barrier.loss == pytest.approx(before.curves[name].barrier.loss, abs=1e-5)
    assert after.curves["naive"].barrier.loss_barrier > 0.01
    assert after.curves["naive"].barrier.loss_barrier > 20 * after.curves["aligned"].barrier.loss_barrier
    assert after.routing["naive"].agreement_with_reference[0][-1] < 0.7
    assert after.routing["aligned"].agreement_with_reference[0][-1] > 0.7


def test_every_path_and_its_report(accelerator, tmp_path):
    a, b = finetuned.pair("mixtral")
    scrambled, _ = scramble(deepcopy(b), seed=3)
    own = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    every = ("naive", "random", "units", "aligned")
    repairs = ("norms", "rescale", "router")
    options = {"arrangements": every, "calibration": finetuned.loader(12, 16), "repairs": (*repairs, "auto")}
    report = evaluate(a, scrambled, accelerator, **options)
    chains = [(), *((repair,) for repair in repairs)]
    if report.repair.repairs not in chains:
        chains.append(report.repair.repairs)
    assert list(report.curves) == [repaired_name(arrangement, chain) for arrangement in every for chain in chains]
    assert len(report.curves[report.chosen].evaluations) == 3
    first = [point.evaluations[0].loss for point in report.curves.values()]
    last = [point.evaluations[-1].loss for point in report.curves.values()]
    assert max(first) == min(first)  # the reference itself, whatever the path
    assert max(last) == pytest.approx(min(last), rel=1e-5)  # the other, moved by symmetries
    barrier = {name: curve.barrier.loss_barrier for name, curve in report.curves.items()}
    assert barrier["random"] > 10 * barrier["aligned"]
    assert barrier["naive + norms"] < barrier["naive"]
    assert all(torch.equal(tensor, own[name]) for name, tensor in a.state_dict().items())

    report.save(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["paths"]["aligned"]["loss"] == list(report.curves["aligned"].barrier.loss)
    assert found["repair"]["repairs"] == list(report.repair.repairs)
    table = (tmp_path / "report.md").read_text()
    assert f"| naive | {barrier['naive']:.4f} [" in table
    assert f"**{report.chosen}** (chosen)" in table
    assert {file.name for file in tmp_path.iterdir()} == {
        "report.json", "report.md", "curves.png", "curves.svg", "routing.png", "routing.svg"
    }  # fmt: skip
    assert (tmp_path / "routing.png").read_bytes().startswith(b"\x89PNG")


def test_the_prediction_ensemble(accelerator):
    """Against the average of the two models' probabilities."""
    a, b = finetuned.pair("olmoe")
    report = evaluate(a, b, accelerator)
    tokens = torch.stack([item["input_ids"] for item in finetuned.held_out(0, 12)])
    with torch.no_grad():
        probabilities = sum(model(input_ids=tokens).logits[:, :-1].double().softmax(-1) for model in (a, b)) / 2
    expected = F.nll_loss(probabilities.log().flatten(0, 1), tokens[:, 1:].flatten())
    assert report.curves["naive"].ensemble_loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("family", "device"), [*((name, "disk") for name in finetuned.FAMILIES), ("qwen2_moe", "mixed")]
)
def test_an_offloaded_model_gives_the_same_figures(family, device, accelerator, tmp_path):
    a, b = finetuned.pair(family)
    options = {"alignment": align(a, b), "family": family, "calibration": finetuned.loader(12, 4, 2, family)}
    options["repairs"] = ["rescale"]
    expected = evaluate(a, b, accelerator, **options).curves
    # "auto" puts what does not fit into memory on the disk.
    placed = (
        {"device_map": {"": "disk"}}
        if device == "disk"
        else {"device_map": "auto", "max_memory": {"cpu": size(a) // 2}}
    )
    auto = AutoModelForImageClassification if family == finetuned.IMAGES else AutoModelForCausalLM
    offloaded = []
    for name, model in (("a", a), ("b", b)):
        model.save_pretrained(tmp_path / name)
        loaded = auto.from_pretrained(
            tmp_path / name,
            **placed,
            offload_folder=tmp_path / f"{name}-offload",
            experts_implementation="eager",
        )
        assert any(parameter.is_meta for parameter in loaded.parameters())
        offloaded.append(loaded)
    found = evaluate(*offloaded, accelerator, **options).curves
    for name, curve in expected.items():
        assert found[name].barrier.loss == pytest.approx(curve.barrier.loss, rel=1e-6)


def test_the_other_end_as_weights_alone(accelerator):
    a, b = finetuned.pair("mixtral")
    alignment = align(a, b)
    expected = evaluate(a, b, accelerator).curves["aligned"].barrier
    assert evaluate(a, dict(LiveWeights(b)), accelerator, alignment=alignment).curves["aligned"].barrier == expected
    assert evaluate(a, dict(LiveWeights(b)), accelerator).curves["aligned"].barrier == expected


def test_half_precision(accelerator):
    """bfloat16 weights and logits; the figures are those of float32 within its rounding."""
    a, b = finetuned.pair("mixtral")
    expected = evaluate(a, b, accelerator).curves["aligned"].barrier
    report = evaluate(deepcopy(a).bfloat16(), deepcopy(b).bfloat16(), accelerator)
    assert report.dtype == "bfloat16"
    assert report.curves["aligned"].barrier.loss == pytest.approx(expected.loss, abs=0.02)
    assert report.curves["aligned"].barrier.loss != expected.loss


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_other_implementations_of_experts(implementation, accelerator):
    a, b = (deepcopy(model) for model in finetuned.pair("mixtral"))
    expected = evaluate(a, b, accelerator)
    a.set_experts_implementation(implementation)
    found = evaluate(a, b, accelerator)
    for name in ("naive", "aligned"):
        assert found.curves[name].barrier.loss == pytest.approx(expected.curves[name].barrier.loss, rel=1e-5)
        agreement = (report.routing[name].agreement_with_other for report in (found, expected))
        torch.testing.assert_close(*map(torch.tensor, agreement))


def test_image_classification(accelerator):
    a, b = (build("moe_vit shared", seed=seed, dtype=torch.float32) for seed in (0, 1))
    data = DataLoader(StackDataset(**inputs(a, 13), labels=torch.arange(13) % 5), batch_size=4)
    report = evaluate_path(a, b, None, data, 3, accelerator=accelerator, **ONLY_ALIGNED)
    assert not report.predicts_tokens
    assert "perplexity" not in report.markdown()
    assert report.curves["naive"].evaluations[0].count == 13


def test_a_point_that_fails_is_reported(accelerator):
    a, b = (deepcopy(model) for model in finetuned.pair("mixtral"))
    weights = dict(LiveWeights(b))
    weights["model.norm.weight"] = weights["model.norm.weight"] * math.nan
    report = evaluate(a, weights, accelerator, alignment=align(a, b))
    assert report.curves["aligned"].barrier.failed == (0.5, 1.0)
    assert "| aligned | failed at t = 0.5, 1 |" in report.markdown()
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["paths"]["aligned"]["loss"][1:] == [None, None]
    assert content["paths"]["aligned"]["loss_barrier"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2}, "three points or more, ascending from 0 to 1, not 2: its endpoints alone show no barrier"),
        ({"points": (0.0, 0.5)}, "ascending from 0 to 1"),
        ({"calibration": finetuned.loader(12, 8)}, "one batch of calibration data cannot be halved"),
    ],
)
def test_what_cannot_be_evaluated(options, message, accelerator):
    with pytest.raises(BadInputError, match=message):
        evaluate(*finetuned.pair("mixtral"), accelerator, **options)


@pytest.mark.parametrize(("blocks", "message"), [(0, "nothing to predict"), (1, "one example; give at least two")])
def test_too_little_data(blocks, message, accelerator):
    a, b = finetuned.pair("mixtral")
    with pytest.raises(BadInputError, match=message):
        evaluate_path(a, b, None, finetuned.loader(0, blocks), 3, accelerator=accelerator)


def test_models_of_two_classes(accelerator):
    a, b = finetuned.pair("mixtral")[0], finetuned.pair("olmoe")[0]
    with pytest.raises(IncompatiblePairError, match="a MixtralForCausalLM, the other a OlmoeForCausalLM"):
        evaluate(a, b, accelerator)


def test_the_alignment_of_another_pair(accelerator):
    a, b = finetuned.pair("mixtral")
    other = build("qwen2_moe", dtype=torch.float32)
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.0\.mlp: a symmetry of sizes"):
        evaluate(a, b, accelerator, alignment=align(other, other))
