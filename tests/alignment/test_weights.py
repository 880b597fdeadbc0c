"""Weights as mappings: the transforms, against the same computed whole, and how often each weight is computed."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from unittest import mock

import pytest
import torch
from torch import Tensor

from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.alignment import aligned, mean, merged, open_model
from hf_moe_lmc.alignment.model_record import ModelRecord, layer_digest
from hf_moe_lmc.alignment.weights import shared, verified
from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.merging import mean_tensor
from hf_moe_lmc.symmetry import MoeSymmetry
from tests import families
from tests.alignment.planted import naive_aligned, naive_merge, planted, same, scrambled
from tests.models import MODELS, build, logits

LAYOUTS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "switch_transformers", "vitpose_backbone", "ernie4_5_moe"]
LAYOUTS += [family for family in ("doge", "jetmoe") if family in families.supported()]
SHARES = [(0.7, 0.3), (0.5, 0.2, 0.3), (0.5, 0.0, 0.5)]


class Counted(Mapping[str, Tensor]):
    """Weights that count how often each is asked for, and give memory of its own each time.

    But for a first one, "looked at", which the type checks of the tests ask for.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights, self.asked = {"looked at": torch.zeros(1), **weights}, Counter[str]()

    def __getitem__(self, name: str) -> Tensor:
        if name != "looked at":
            self.asked[name] += 1
        return self.weights[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def once(self) -> Counter[str]:
        """The count when every weight has been asked for once."""
        return Counter(name for name in self if name != "looked at")


def relative_difference(a, b) -> float:
    expected = logits(a)
    return float((logits(b) - expected).abs().max() / expected.abs().max())


# aligned


@pytest.mark.parametrize("name", MODELS)
def test_alignment_keeps_the_function(name):
    """Routers of Mixtral and Qwen2-MoE compute their softmax in float32, hence the tolerance."""
    model = build(name)
    assert relative_difference(model, scrambled(model, planted(model))) < (1e-12 if name.startswith("moe_") else 2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_control_experts_without_router(name):
    model = build(name)
    other = scrambled(model, planted(model))
    state = other.state_dict()
    for spec in moe_layers(model):
        state |= spec.router.write(spec.router.read(model.state_dict()), None)
    other.load_state_dict(state)
    assert relative_difference(model, other) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", LAYOUTS)
def test_aligned_equals_the_layers_in_canonical_axes(family, dtype):
    """Bit for bit: no weight is rounded."""
    model = families.build(family, dtype=dtype)
    state, specs, symmetries = model.state_dict(), alignable_layers(model), planted(model)
    found = dict(aligned(state, specs, symmetries))
    assert same(found, naive_aligned(state, specs, symmetries))
    assert not same(found, state)
    inverse = {name: symmetry.inverse() for name, symmetry in symmetries.items()}
    assert same(dict(aligned(aligned(state, specs, symmetries), specs, inverse)), state)


def test_layers_without_a_symmetry_stay():
    model = build("mixtral")
    state, (first, second) = model.state_dict(), alignable_layers(model)
    found = dict(aligned(state, (first, second), {first.name: planted(model)[first.name]}))
    changed = {name for name in state if not torch.equal(found[name], state[name])}
    assert changed == {*first.tensor_names}
    assert not changed & {*second.tensor_names}


def test_symmetries_of_other_sizes_are_refused():
    model = build("mixtral")
    state, specs = model.state_dict(), alignable_layers(model)
    wrong = aligned(state, specs, {name: MoeSymmetry.identity(5, 8) for name in planted(model)})
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.0\.mlp: a symmetry of sizes .* cannot act"):
        dict(wrong)


def test_aligned_reads_each_weight_once_and_hands_it_out_once():
    """And holds one layer: what it has handed out it forgets, and the last layer when the next one is asked for."""
    model = build("qwen2_moe")
    source, specs = Counted(model.state_dict()), alignable_layers(model)
    weights = aligned(source, specs, planted(model))
    first, second = specs[0].tensor_names, specs[1].tensor_names
    given = weakref.ref(weights[first[0]])
    gc.collect()
    assert given() is None
    assert source.asked == Counter(first)
    for name in [*first[1:], *second]:
        weights[name]
    assert source.asked == Counter([*first, *second])
    assert weights._pending == {}
    weights[first[0]]
    assert source.asked[first[0]] == 2  # asked again, computed again
    dict(weights)
    assert len(weights) == len(source)
    assert "model.x" not in weights


# mean


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_the_mean_is_that_of_every_tensor(shares):
    models = [build("mixtral", seed=seed) for seed in range(len(shares))]
    states = [model.state_dict() for model in models]
    expected = naive_merge(states, alignable_layers(models[0]), shares)
    for name, tensor in mean(states, shares).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_model_with_all_the_share_is_itself_and_the_others_are_not_read(which):
    states = [Counted({"a": torch.full((3, 5), torch.nan), "b": torch.full((2,), torch.nan)}) for _ in range(3)]
    states[which] = Counted({"a": torch.randn(3, 5), "b": torch.randn(2)})
    shares = [float(i == which) for i in range(3)]
    assert same(dict(mean(states, shares)), states[which].weights)
    assert same(dict(merged(states, shares, (), ["norms"])), states[which].weights)
    assert [bool(state.asked) for state in states] == [i == which for i in range(3)]


def test_names_must_agree():
    first, three, four = {"looked at": torch.zeros(1)}, torch.zeros(3), torch.zeros(4)
    with pytest.raises(IncompatiblePairError, match="tensor b does not exist in all of the models"):
        dict(mean([first | {"b": three}, first], (0.5, 0.5)))
    with pytest.raises(IncompatiblePairError, match=r"tensor b: shape \(3,\) in the reference, \(4,\) in the other"):
        dict(mean([first | {"b": three}, first | {"b": four}], (0.5, 0.5)))


def test_means_leave_their_inputs_alone(tmp_path):
    """Of a state dict, which others hold; a checkpoint's tensors are read anew, and their memory may be taken."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    states = [model.state_dict() for model in models]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    specs = alignable_layers(models[0])
    found = dict(merged(states, (0.7, 0.3), specs, ["norms"]))
    plain = dict(mean([aligned(states[0], specs, {}), aligned(states[1], specs, planted(models[1]))], (0.7, 0.3)))
    assert all(same(state, old) for state, old in zip(states, before, strict=True))
    for seed, model in enumerate(models):
        model.save_pretrained(tmp_path / str(seed))
    a, b = (open_model(tmp_path / name) for name in "01")
    assert same(dict(merged([a.tensors, b.tensors], (0.7, 0.3), specs, ["norms"])), found)
    assert same(dict(mean([a.tensors, aligned(b.tensors, specs, planted(models[1]))], (0.7, 0.3))), plain)
    assert same(dict(a.tensors), before[0])


# merged


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize(("repairs", "gauge"), [([], True), (["norms"], False), (["norms", "gram"], True)], ids=str)
@pytest.mark.parametrize("family", LAYOUTS)
def test_merged_equals_whole_layers(family, repairs, gauge, shares):
    """Expert by expert, in the layout of the module, as the layers in canonical axes and in float64."""
    models = [families.build(family, experts=4, seed=seed) for seed in range(len(shares))]
    states, specs = [model.state_dict() for model in models], alignable_layers(models[0])
    expected = naive_merge(states, specs, shares, repairs, gauge=gauge)
    plain = naive_merge(states, specs, shares)
    found = dict(merged(states, shares, specs, repairs, gauge=gauge))
    for name, tensor in found.items():
        assert tensor.dtype == states[0][name].dtype
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=2e-4, atol=2e-4)
    changed = any(not torch.allclose(found[name].double(), plain[name], rtol=1e-2) for name in specs[-1].tensor_names)
    group = specs[-1].group
    assert changed == bool(repairs or group.unit_scale_degree or group.shared_unit_scale_degree)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_a_merged_point_reads_each_weight_once(shares):
    models = [build("qwen2_moe", seed=seed) for seed in range(len(shares))]
    specs, sources = alignable_layers(models[0]), [Counted(model.state_dict()) for model in models]
    others = [aligned(source, specs, planted(model)) for source, model in zip(sources[1:], models[1:], strict=True)]
    dict(merged([sources[0], *others], shares, specs, ["norms", "gram"]))
    for source, share in zip(sources, shares, strict=True):
        assert source.asked == (source.once if share else Counter())


def test_a_merged_point_computes_the_mean_of_each_weight_once():
    """Experts are averaged where they are repaired, and nowhere else."""
    models = [build("mixtral", seed=seed) for seed in (0, 1)]
    states, specs = [model.state_dict() for model in models], alignable_layers(models[0])
    averaged = []

    def counted(name, *arguments, **keywords):
        averaged.append(name)
        return mean_tensor(name, *arguments, **keywords)

    with mock.patch("hf_moe_lmc.alignment.weights.mean_tensor", counted):
        dict(merged(states, (0.7, 0.3), specs, ["norms"]))
    experts = {name for name in states[0] if ".experts." in name}
    assert experts
    assert states[0].keys() - {name for spec in specs for name in spec.tensor_names} <= {*averaged}
    assert not experts & {*averaged}


# shared


@pytest.mark.parametrize("consumers", [2, 3])
def test_shared_weights_are_computed_once_and_forgotten_after_the_last_consumer(consumers):
    source = Counted({"a": torch.zeros(3), "b": torch.ones(2), "c": torch.ones(1)})
    weights = shared(source, consumers)
    for name in ("a", "b"):  # step by step, as they are written
        given = [weights[name] for _ in range(consumers - 1)]
        assert all(tensor is given[0] for tensor in given)
        kept = weakref.ref(given[0])
        del given
        assert kept() is not None
        weights[name]
        assert kept() is None
    for _ in range(consumers):  # one after the other, in any order
        weights["c"]
    assert source.asked == source.once
    assert list(weights) == list(source)


def test_one_consumer_shares_with_nobody():
    source = Counted({"a": torch.zeros(3)})
    assert shared(source, 1) is shared(source, 0) is source


# verified


def test_verified_weights_are_those_of_the_record():
    model = build("mixtral", dtype=torch.float32)
    state, specs = model.state_dict(), alignable_layers(model)
    record = ModelRecord("org/a", None, {spec.name: layer_digest(spec, state) for spec in specs})
    source = Counted(state)
    assert same(dict(verified(source, specs, record, "mine")), source.weights)
    assert source.asked == source.once
    changed = state | {specs[1].tensor_names[0]: state[specs[1].tensor_names[0]].clone()}
    changed[specs[1].tensor_names[0]].view(-1)[3] += 1e-3
    weights = verified(changed, specs, record, "mine")
    assert all(torch.equal(weights[name], state[name]) for name in specs[0].tensor_names)
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.1\.mlp of mine is not that of org/a, "):
        weights[specs[1].tensor_names[-1]]
    embedding = changed | {"model.embed_tokens.weight": torch.zeros(1)}  # no layer of the record
    assert len(verified(embedding, specs, record, "mine")["model.embed_tokens.weight"]) == 1
