import json
import math
from contextlib import contextmanager
from copy import deepcopy
from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from hf_moe_lmc import MoeAligner, scramble
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.alignment import aligned, temporarily_loaded
from hf_moe_lmc.connectivity import Calibrated, CalibrationData, calibrate_repairs, choose_repairs, evaluate
from hf_moe_lmc.connectivity.repair_choice import repaired_name
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import AUTOMATIC, needs_data
from hf_moe_lmc.names import Repair
from tests.connectivity import siblings
from tests.models import build, inputs

NAMES = ["moe_vit shared", "moe_gpt2 sparse", "mixtral", "qwen2_moe"]
HALF, NORMS = (0.5, 0.5), ("norms",)


@contextmanager
def calibrated(a, b, data=()):
    """The mean of `a`, which lends its place, and others, given as weights."""
    with temporarily_loaded(a) as saved:
        yield Calibrated(saved, [saved, *b], moe_layers(a), CalibrationData.of(data), Accelerator(cpu=True), True)


def pair(name: str, dtype: torch.dtype = torch.float32):
    return [build(name, seed=seed, dtype=dtype) for seed in (0, 1)]


def same(x, y) -> bool:
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize(
    ("plain", "repaired", "kept"),
    [(0.3, 0.0, True), (0.0, 0.3, False), (0.0, 0.0, False), (0.0, math.nan, False), (math.nan, 0.0, False)],
)
def test_auto_is_kept_where_it_lowers_the_held_out_loss(plain, repaired, kept, monkeypatch):
    """Merges that are the model itself, with more or less noise; a tie changes nothing."""
    model = build("mixtral", dtype=torch.float32)
    tokens = inputs(model)["input_ids"]
    with torch.no_grad():
        labels = torch.cat([tokens[:, :1], model(input_ids=tokens).logits[:, :-1].argmax(-1)], dim=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in before.items()}
    seen = []

    def noisy(self, shares, repairs, statistics):
        size = repaired if repairs else plain
        return {name: tensor + size * directions[name] for name, tensor in before.items()}

    def gathered(self, shares, batches):
        seen.append(batches)
        return {}

    monkeypatch.setattr(Calibrated, "_merged", noisy)
    monkeypatch.setattr(Calibrated, "_gathered", gathered)
    batch = {"input_ids": tokens, "labels": labels}
    with calibrated(model, [], [batch, batch | {"labels": tokens}]) as merge:
        choice = choose_repairs(merge, HALF, "naive")
    assert choice.repairs == (AUTOMATIC if kept else ())
    assert list(choice.held_out_loss) == ["naive", "naive + norms + gram + moments"]
    assert [len(batches) for batches in seen] == [1]  # calibrated on one half, tested on the other
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_norms(name, dtype):
    """The endpoints are the models; between them only the Mixture-of-Experts layers leave the line, and do."""
    a, b = pair(name, dtype)
    own = {key: tensor.clone() for key, tensor in a.state_dict().items()}
    with calibrated(a, [b.state_dict()]) as merge:
        assert same(dict(merge.weights((1.0, 0.0), NORMS)), own)
        assert same(dict(merge.weights((0.0, 1.0), NORMS)), b.state_dict())
        repaired, plain = dict(merge.weights(HALF, NORMS)), dict(merge.weights(HALF))
        specs = merge.specs
    assert all(tensor.dtype == dtype for tensor in repaired.values())
    changed = {key for key in repaired if not torch.equal(repaired[key], plain[key])}
    routed = {key for spec in specs for key in spec.tensor_names if not key.endswith("down_proj_bias")}
    assert changed <= routed
    assert {key for key in routed if "weight" in key or "up_proj" in key} <= changed


CHANGED = {
    "norms": {"router", "up", "down"},
    "gram": {"up", "down"},
    "moments": {"down"},
    "rescale": {"down"},
    "router": {"router"},
}


@pytest.mark.parametrize("repair", get_args(Repair))
@pytest.mark.parametrize("name", NAMES)
def test_what_a_repair_changes(name, repair):
    a, b = pair(name)
    own = {key: tensor.clone() for key, tensor in a.state_dict().items()}
    batch = inputs(a)
    with calibrated(a, [b.state_dict()], [batch, batch]) as merge:
        assert same(dict(merge.weights((1.0, 0.0), [repair])), own)
        assert same(dict(merge.weights((0.0, 1.0), [repair])), b.state_dict())
        repaired, plain = dict(merge.weights((0.6, 0.4), [repair])), dict(merge.weights((0.6, 0.4)))
        specs = merge.specs
    assert all(torch.isfinite(tensor).all() for tensor in repaired.values())
    for spec in specs:
        router = {key for _, key in spec.router.tensors}
        parts = {
            key: "router" if key in router else "down" if "down_proj" in key else "up" for key in spec.tensor_names
        }
        assert {parts[key] for key in parts if not torch.equal(repaired[key], plain[key])} == CHANGED[repair]
    rest = repaired.keys() - {key for spec in specs for key in spec.tensor_names}
    assert all(torch.equal(repaired[key], plain[key]) for key in rest)


def test_one_repair_after_the_other():
    """A chain is not the last of its repairs, and its order counts."""
    a, b = pair("mixtral")
    chains = (["norms"], ["rescale"], ["norms", "rescale"], ["rescale", "norms"])
    with calibrated(a, [b.state_dict()], [inputs(a)] * 2) as merge:
        down = merge.specs[0].experts.tensor_names[1]
        sizes = {float(merge.weights(HALF, chain)[down].double().norm()) for chain in chains}
    assert len(sizes) == 4


@pytest.mark.parametrize("repair", [repair for repair in get_args(Repair) if needs_data([repair])])
def test_a_layer_without_statistics_stays_on_the_line(repair, monkeypatch):
    a, b = pair("mixtral")
    monkeypatch.setattr(Calibrated, "statistics", lambda self, shares: {})
    with calibrated(a, [b.state_dict()]) as merge:
        line = merge.weights(HALF)
        assert same(dict(merge.weights(HALF, [repair])), dict(line))


def test_calibrated_at_every_point():
    """Each point has statistics of its own; the endpoints need none."""
    a, b = siblings.pair("qwen2_moe")
    points = [(1.0, 0.0), (0.75, 0.25), HALF, (0.0, 1.0)]
    with calibrated(a, [b.state_dict()], siblings.loader(12, 16)) as merge:
        repairs = calibrate_repairs(merge, points, ("rescale",))
    assert list(repairs.statistics) == points[1:3]
    first, second = repairs.statistics.values()
    name = max(first)  # the last layer, which sees what the others made of the tokens
    assert not torch.equal(first[name].experts.tokens, second[name].experts.tokens)
    assert repairs.record == {"repairs": ["rescale"], "calibration": {"data": merge.data.digest}}


def test_repairs_need_data():
    a, b = siblings.pair("qwen2_moe")
    with calibrated(a, [b.state_dict()]) as merge:
        for repairs in (("rescale",), "auto"):
            with pytest.raises(BadInputError, match="repairs need calibration data; give two batches or more"):
                calibrate_repairs(merge, [HALF], repairs)
        without = calibrate_repairs(merge, [HALF], NORMS)
    assert (without.repairs, without.statistics) == (NORMS, {})


@pytest.mark.parametrize("repairs", ["auto", ("rescale",), ("norms", "router")])
def test_what_is_written_is_what_was_evaluated(repairs, tmp_path):
    """Bit for bit: the merge on disk, the merge in memory, and the model at t while the path was evaluated."""
    a, b = siblings.pair("qwen2_moe")
    b = scramble(deepcopy(b), seed=3)[0]
    a.save_pretrained(tmp_path / "a")
    b.save_pretrained(tmp_path / "b")
    from_disk, live = MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b"), MoeAligner.from_pretrained(a, b)
    alignment, calibration = from_disk.align(), siblings.loader(12, 16)
    options = {"repairs": repairs, "calibration": calibration, "experts_implementation": "eager"}
    folder = from_disk.merge(alignment, 0.5, output=tmp_path / "merged", **options)
    on_disk = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    record = json.loads((folder / "hf_moe_lmc_manifest.json").read_text())
    if repairs != "auto":
        assert record["repairs"] == list(repairs)
    assert same(live.merge(alignment, 0.5, **options).state_dict(), on_disk.state_dict())
    plain = live.merge(alignment, 0.5).state_dict()
    assert same(plain, on_disk.state_dict()) == (not record["repairs"])
    if repairs != "auto" and len(repairs) > 1:
        return  # a chain that no path of an evaluation has
    data, accelerator = siblings.loader(0, 12), Accelerator(cpu=True)
    chains = ("auto",) if repairs == "auto" else repairs
    measured = live.evaluate(
        alignment, data, 3, calibration=calibration, variants=("aligned",), repairs=chains, accelerator=accelerator
    )
    curve = measured.curves[repaired_name("aligned", record["repairs"])]
    assert evaluate(on_disk, data, accelerator).loss == curve.midpoint_loss
    if repairs == "auto":
        assert record["calibration"]["held_out_loss"] == measured.choices["aligned"].held_out_loss


def test_several_models_are_repaired_at_their_shares(tmp_path):
    """On disk and in memory the same; "auto" judges the mean that is written."""
    models = [siblings.stepped(siblings.base("mixtral"), seed) for seed in (1, 2, 3)]
    for name, model in zip("abc", models, strict=True):
        model.save_pretrained(tmp_path / name)
    options = {"shares": (2.0, 1.0, 1.0), "calibration": siblings.loader(12, 8, 4), "experts_implementation": "eager"}
    from_disk = MoeAligner.from_pretrained(*(tmp_path / name for name in "abc"))
    alignments = from_disk.align()
    records = {}
    for repairs in ("auto", ("moments",)):
        out = from_disk.merge(alignments, output=tmp_path / str(repairs), repairs=repairs, **options)
        records[repairs] = json.loads((out / "hf_moe_lmc_manifest.json").read_text())
    live = MoeAligner.from_pretrained(*models).merge(alignments, repairs=("moments",), **options)
    assert same(live.state_dict(), AutoModelForCausalLM.from_pretrained(out).state_dict())
    assert [record["shares"] for record in records.values()] == [[0.5, 0.25, 0.25]] * 2
    losses = records["auto"]["calibration"]["held_out_loss"]
    assert losses[repaired_name("aligned", records["auto"]["repairs"])] == min(losses.values())
    with calibrated(
        models[0],
        [
            aligned(b.state_dict(), moe_layers(b), part.symmetries)
            for b, part in zip(models[1:], alignments, strict=True)
        ],
        siblings.loader(12, 8, 4),
    ) as merge:
        assert losses["aligned"] == merge.held_out_losses((0.5, 0.25, 0.25), [()])[0]
