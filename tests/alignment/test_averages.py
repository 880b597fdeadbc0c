"""Averages of checkpoints of one run, and of models that are in one order: nothing is matched, every bit is told."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_moe_lmc import Alignment, cli, merge
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import aligned, check_models, in_order, open_model, pairwise
from hf_moe_lmc.alignment.random_rewrite import scramble
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.families import build
from tests.models import mixtral

EXPONENTIAL = [0.7**age for age in reversed(range(10))]
SAVED = [{"max_shard_size": 6_000}, {"save_original_format": False}]


def mean(tensors: list[Tensor], shares: list[float]) -> Tensor:
    """`x_0 + sum_i s_i (x_i - x_0)` in float32, rounded once."""
    first, total = tensors[0].float(), sum(shares)
    result = first.clone()
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        result.add_(tensor.float() - first, alpha=share / total)
    return result.to(tensors[0].dtype)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ten checkpoints of one run, in shards under their own keys or in one file under module names, of two dtypes."""
    folder, model = tmp_path_factory.mktemp("run"), mixtral(hidden_size=16, num_hidden_layers=1, vocab_size=31)
    for step in range(10):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.001 * torch.randn_like(parameter))
        saved = type(model)(model.config)
        saved.load_state_dict(model.state_dict())
        saved.to(torch.float32 if step % 3 else torch.bfloat16).save_pretrained(folder / str(step), **SAVED[step % 2])
    return [folder / str(step) for step in range(10)]


@pytest.mark.parametrize(
    ("shares", "order"), [([1.0] * 10, []), (EXPONENTIAL, ["--expert-order", "none"])], ids=["window", "exponential"]
)
def test_ten_checkpoints_of_one_run(run, shares, order, tmp_path, monkeypatch, capsys):
    """Nothing is matched, whether that is asked for or found."""
    monkeypatch.setattr(pairwise, "align_layers", None)
    models = [open_model(folder).tensors for folder in run]
    assert cli.main(["merge", *map(str, run), "--shares", *map(str, shares), *order, "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert ("In one order already" in shown.out) == ("in one order already" in shown.err) == (not order)
    averaged = open_model(tmp_path / "out").tensors
    assert averaged.keys() == models[0].keys()
    for name, tensor in averaged.items():
        assert torch.equal(tensor, mean([model[name] for model in models], shares)), name
    assert not torch.equal(averaged["lm_head.weight"], models[0]["lm_head.weight"])


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "switch_transformers"])
def test_models_in_one_order(family):
    """As fine-tunes are; of one whose last layer is in another order, or of other models, it is denied."""
    model, other, unrelated = build(family, experts=4), build(family, experts=4), build(family, experts=4, seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert in_order(check_models([open_model(one) for one in (model, other)]))
    layers = scramble(build(family, experts=4))[1].layers
    last = Alignment({name: layer for name, layer in layers.items() if name == max(layers)})
    moved = last.apply(build(family, experts=4))
    assert not in_order(check_models([open_model(one) for one in (model, moved)]))
    assert not in_order(check_models([open_model(one) for one in (model, other, unrelated)]))


def test_zero_experts_in_another_order_are_seen():
    """They have a router row and nothing else."""
    model, other = (build("longcat_flash") for _ in range(2))
    assert in_order(check_models([open_model(one) for one in (model, other)]))
    spec = next(spec for spec in alignable_layers(model) if spec.group.further_rows == "zero experts")
    *sizes, zero = spec.read(model.state_dict()).symmetry_shape
    swapped = replace(MoeSymmetry.identity(*sizes, zero), zero_experts=Permutation(torch.arange(zero).roll(1)))
    other.load_state_dict(dict(aligned(model.state_dict(), [spec], {spec.name: swapped})))
    assert not in_order(check_models([open_model(one) for one in (model, other)]))


def test_extrapolation():
    """Beyond the other model, and what training added to `base` added to A: only when asked for, and never repaired."""
    base, a, b = (build("mixtral", experts=3, seed=seed) for seed in range(3))
    for options in ({"t": 1.5}, {"t": 0.5, "extrapolate": True, "repairs": ["norms"]}):
        with pytest.raises(BadInputError, match="extrapolate"):
            merge(a, b, "none", **options)
    beyond = merge(a, b, "none", 1.5, extrapolate=True).state_dict()
    added = merge(a, [b, base], "none", shares=[1, 1, -1], extrapolate=True).state_dict()
    for name, (x, y, z) in {key: [m.state_dict()[key] for m in (a, b, base)] for key in beyond}.items():
        torch.testing.assert_close(beyond[name], x + 1.5 * (y - x))
        torch.testing.assert_close(added[name], x + y - z)
