import json
import math
import re
from collections import Counter
from copy import deepcopy
from statistics import mode

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from hf_moe_lmc import MoeAligner, align, scramble
from hf_moe_lmc.alignment import pairwise
from hf_moe_lmc.checkpoints.stored_tensor import StoredTensor
from hf_moe_lmc.connectivity import path_evaluation
from hf_moe_lmc.connectivity.repair_choice import repaired_name
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.progress import Progress
from tests.connectivity import siblings
from tests.models import build, inputs


def size(model) -> int:
    """Bytes of its weights."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def scrambled(model):
    return scramble(deepcopy(model), seed=3)[0]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def evaluate(a, b, accelerator, points=3, alignment=None, family="mixtral", **options):
    data = siblings.loader(0, 12, family=family)
    options = {"variants": ("aligned",), "repairs": ("norms",)} | options
    return MoeAligner.from_pretrained(a, b).evaluate(alignment, data, points, accelerator=accelerator, **options)


@pytest.mark.parametrize("family", siblings.FAMILIES)
def test_a_scrambled_sibling(family, accelerator):
    """A large barrier as it is; aligned, that of the sibling before it was scrambled."""
    a, b = siblings.pair(family)
    before, after = (evaluate(a, other, accelerator, family=family) for other in (b, scrambled(b)))
    for name in ("aligned", "aligned + norms"):
        assert after.curves[name].barrier.loss == pytest.approx(before.curves[name].barrier.loss, abs=1e-5)
    assert after.curves["naive"].barrier.loss_barrier > 0.05
    assert after.curves["naive"].barrier.loss_barrier > 5 * after.curves["aligned"].barrier.loss_barrier
    agreement = {name: torch.tensor(routing.agreement_with_reference)[:, -1] for name, routing in after.routing.items()}
    assert (agreement["naive"] < agreement["aligned"] - 0.2).all()
    expected = torch.tensor(before.routing["naive"].agreement_with_reference)[:, -1]
    torch.testing.assert_close(agreement["aligned"], expected)


def test_every_path_and_its_report(accelerator, tmp_path):
    a, b = siblings.pair("mixtral")
    own = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    every, controls = ("naive", "random", "units", "aligned"), ("pick", "reference_experts", "other_experts")
    repairs = ("norms", "rescale", "router")
    options = {"variants": (*every, *controls), "calibration": siblings.loader(12, 16), "repairs": (*repairs, "auto")}
    report = evaluate(a, scrambled(b), accelerator, **options)
    chains = [(), *((repair,) for repair in repairs)]
    names = [
        repaired_name(variant, chain)
        for variant in every
        for chain in dict.fromkeys([*chains, report.choices[variant].repairs])
    ]
    assert list(report.choices) == list(every)
    assert list(report.curves) == [*names, *controls]
    assert len(report.curves[report.chosen].evaluations) == 3
    first = [point.evaluations[0].loss for point in report.curves.values()]
    last = [point.evaluations[-1].loss for point in report.curves.values()]
    assert max(first) == min(first)  # the reference itself, whatever the path
    assert max(last) == pytest.approx(min(last), rel=1e-4)  # the other under symmetries
    barrier = {name: curve.barrier.loss_barrier for name, curve in report.curves.items()}
    assert min(barrier["random"], barrier["naive"]) > 10 * barrier["aligned"]
    middle = {name: curve.midpoint_loss for name, curve in report.curves.items()}
    assert len(set(middle.values())) == len(middle)  # every repair does something on every path
    assert all(torch.equal(tensor, own[name]) for name, tensor in a.state_dict().items())

    report.save(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["paths"]["aligned"]["loss"] == list(report.curves["aligned"].barrier.loss)
    assert found["repair"]["aligned"]["repairs"] == list(report.choices["aligned"].repairs)
    table = (tmp_path / "report.md").read_text()
    assert f"| naive | {barrier['naive']:.4f} [" in table
    assert f"**{report.chosen}** (chosen)" in table
    assert {file.name for file in tmp_path.iterdir()} == {
        "report.json", "report.md", "curves.png", "curves.svg", "routing.png", "routing.svg"
    }  # fmt: skip
    assert (tmp_path / "routing.png").read_bytes().startswith(b"\x89PNG")


def test_the_prediction_ensemble(accelerator):
    """Against the average of the two models' probabilities."""
    a, b = siblings.pair("olmoe")
    report = evaluate(a, b, accelerator, family="olmoe")
    (batch,) = siblings.loader(0, 12, batch_size=12, family="olmoe")
    tokens, labels = batch["input_ids"], batch["labels"]
    with torch.no_grad():
        probabilities = sum(model(input_ids=tokens).logits[:, :-1].double().softmax(-1) for model in (a, b)) / 2
    expected = F.nll_loss(probabilities.log().flatten(0, 1), labels[:, 1:].flatten())
    assert report.curves["naive"].ensemble_loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("family", "device"), [("qwen2_moe", "disk"), ("qwen2_moe", "mixed"), (siblings.IMAGES, "disk")]
)
def test_an_offloaded_model_gives_the_same_figures(family, device, accelerator, tmp_path):
    a, b = siblings.pair(family)
    options = {"alignment": align(a, b), "family": family, "calibration": siblings.loader(12, 4, 2, family)}
    options["repairs"] = ["rescale"]
    expected = evaluate(a, b, accelerator, **options).curves
    # "auto" puts what does not fit into memory on the disk.
    placed = (
        {"device_map": {"": "disk"}}
        if device == "disk"
        else {"device_map": "auto", "max_memory": {"cpu": size(a) // 2}}
    )
    auto = AutoModelForImageClassification if family == siblings.IMAGES else AutoModelForCausalLM
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


def test_the_same_curves_wherever_the_other_is_held(accelerator, tmp_path, monkeypatch):
    """Held, every tensor is read once; from disk, at every point. As from two live models, and nothing is written."""
    a, b = siblings.pair("mixtral")
    a.save_pretrained(tmp_path / "a")
    scrambled(b).save_pretrained(tmp_path / "b")
    expected = evaluate(a, scrambled(b), accelerator).curves
    alignment, reads, totals = align(tmp_path / "a", tmp_path / "b"), Counter(), {}
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    read_into = StoredTensor.read_into

    def counted(self, tensor):
        reads[self.key] += 1
        read_into(self, tensor)

    monkeypatch.setattr(StoredTensor, "read_into", counted)
    for placement in ("device", "host memory", "disk"):
        monkeypatch.setattr(path_evaluation, "placement_for", lambda *_, placement=placement: placement)
        reads.clear()
        options = {"alignment": alignment, "memory": 1, "experts_implementation": "eager"}
        curves = evaluate(tmp_path / "a", tmp_path / "b", accelerator, **options).curves
        assert {name: curve.barrier for name, curve in curves.items()} == {
            name: curve.barrier for name, curve in expected.items()
        }
        totals[placement] = reads.total()
    assert 2 * max(totals["device"], totals["host memory"]) < totals["disk"]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == files


def test_a_repaired_point_is_computed_once(accelerator, tmp_path, monkeypatch, capsys):
    """Reads of the other per path of T points: T of the plain one, T - 2 of each repaired one; as was announced."""
    a, b = siblings.pair("mixtral")
    b.save_pretrained(tmp_path)
    a.save_pretrained(tmp_path / "a")
    reads, read_into = Counter(), StoredTensor.read_into

    def counted(self, tensor):
        reads[self.key] += 1
        read_into(self, tensor)

    alignment = align(tmp_path / "a", tmp_path)
    monkeypatch.setattr(StoredTensor, "read_into", counted)
    bars = []
    monkeypatch.setattr(path_evaluation, "Progress", lambda **options: bars.append(Progress(**options)) or bars[-1])
    counts = []
    for repairs in ((), ("norms",)):
        reads.clear()
        evaluate(tmp_path / "a", tmp_path, accelerator, 5, alignment, variants=("naive",), repairs=repairs)
        counts.append(mode(reads.values()))  # type checks look at the first tensor, too
    # Not read at t = 0.
    assert counts == [4, 4 + 3]
    text = r"(.*) paths, (.*) evaluations of (.*) batches: about .*, a batch takes .* to .* s now"
    announced = re.findall(text, capsys.readouterr().err)
    assert announced == [("1", "5", "2"), ("2", "8", "2")]
    assert [bar.n for bar in bars] == [bar.total for bar in bars] == [5 * 2, 8 * 2]


@pytest.mark.parametrize(("variants", "matchings"), [(("naive", "random"), 0), (("aligned",), 3), (("units",), 3)])
def test_what_is_not_evaluated_is_not_matched(variants, matchings, accelerator, monkeypatch):
    """Layers are matched for the variants that need it, each once."""
    align_layers, asked = pairwise.align_layers, []

    def counted(*args):
        asked.append(args)
        return align_layers(*args)

    monkeypatch.setattr(pairwise, "align_layers", counted)
    evaluate(*siblings.pair("mixtral"), accelerator, variants=variants, repairs=())
    assert len(asked) == matchings


def test_t_instead_of_points(accelerator):
    a, b = siblings.pair("mixtral")
    t = (0.0, 0.25, 0.5, 1.0)
    report = evaluate(a, b, accelerator, t=t, repairs=())
    assert report.curves["aligned"].t == t
    even = evaluate(a, b, accelerator, points=5, repairs=())
    assert report.curves["aligned"].evaluations[1] == even.curves["aligned"].evaluations[1]


def test_half_precision(accelerator):
    """bfloat16 weights and logits; the figures are those of float32 within its rounding."""
    a, b = siblings.pair("mixtral")
    expected = evaluate(a, b, accelerator).curves["aligned"].barrier
    report = evaluate(deepcopy(a).bfloat16(), deepcopy(b).bfloat16(), accelerator)
    assert report.dtype == "bfloat16"
    assert report.curves["aligned"].barrier.loss == pytest.approx(expected.loss, abs=0.05)
    assert report.curves["aligned"].barrier.loss != expected.loss


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_other_implementations_of_experts(implementation, accelerator):
    a, b = (deepcopy(model) for model in siblings.pair("mixtral"))
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
    report = MoeAligner.from_pretrained(a, b).evaluate(None, data, 3, variants=(), accelerator=accelerator)
    assert not report.predicts_tokens
    assert "perplexity" not in report.markdown()
    assert report.curves["naive"].evaluations[0].count == 13


def test_a_point_that_fails_is_reported(accelerator):
    a, b = (deepcopy(model) for model in siblings.pair("mixtral"))
    with torch.no_grad():
        b.model.norm.weight.fill_(math.nan)
    report = evaluate(a, b, accelerator)
    assert report.curves["aligned"].barrier.failed == (0.5, 1.0)
    assert "| aligned | failed at t = 0.5, 1 |" in report.markdown()
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["paths"]["aligned"]["loss"][1:] == [None, None]
    assert content["paths"]["aligned"]["loss_barrier"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2}, "three points or more, ascending from 0 to 1, not 2 points"),
        ({"t": (0.0, 0.5)}, "ascending from 0 to 1"),
        ({"calibration": siblings.loader(12, 8)}, "one batch of calibration data cannot be halved"),
    ],
)
def test_what_cannot_be_evaluated(options, message, accelerator):
    with pytest.raises(BadInputError, match=message):
        evaluate(*siblings.pair("mixtral"), accelerator, **options)


@pytest.mark.parametrize(("blocks", "message"), [(0, "nothing to predict"), (1, "one example; give at least two")])
def test_too_little_data(blocks, message, accelerator):
    aligner = MoeAligner.from_pretrained(*siblings.pair("mixtral"))
    with pytest.raises(BadInputError, match=message):
        aligner.evaluate(None, siblings.loader(0, blocks), 3, accelerator=accelerator)


def test_a_path_has_two_models(accelerator):
    a, b = siblings.pair("mixtral")
    with pytest.raises(BadInputError, match="a path has two models, not 3"):
        MoeAligner.from_pretrained(a, b, a).evaluate(None, siblings.loader(0, 2), accelerator=accelerator)


def test_models_of_two_classes(accelerator):
    a, b = siblings.pair("mixtral")[0], siblings.pair("olmoe")[0]
    with pytest.raises(IncompatiblePairError, match="a MixtralForCausalLM, the other a OlmoeForCausalLM"):
        evaluate(a, b, accelerator)


def test_the_alignment_of_another_pair(accelerator):
    a, b = siblings.pair("mixtral")
    other = build("qwen2_moe", dtype=torch.float32)
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.0\.mlp: a symmetry of sizes"):
        evaluate(a, b, accelerator, alignment=align(other, other))
