import pytest
import torch

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import temporarily_loaded
from hf_moe_lmc.connectivity import CalibrationData, gather_statistics
from hf_moe_lmc.connectivity.calibration import _activation
from hf_moe_lmc.errors import BadInputError
from tests import families
from tests.models import build, inputs

NAMES = ["moe_vit dense", "moe_vit sparse", "moe_vit shared", "moe_gpt2 shared", "mixtral", "qwen2_moe"]
FAMILIES = ["olmoe", "deepseek_v3", "gpt_oss", "glm4_moe"]


def model_of(name: str):
    return build(name, dtype=torch.float32) if name in NAMES else families.build(name)


def batches(model, number: int = 2) -> list:
    batch = inputs(model)
    return [{key: tensor[i::number] for key, tensor in batch.items()} for i in range(number)]


def gathered(model, specs, data, **options):
    with temporarily_loaded(model) as saved:
        return gather_statistics(saved, dict(saved), specs, data, **options)


@pytest.mark.parametrize("name", [*NAMES, *FAMILIES])
def test_what_reaches_a_layer(name):
    """Tokens, routing and outputs of the module itself; its router's scores are those of the tokens."""
    model = model_of(name)
    specs, data, seen = alignable_layers(model), batches(model), {}
    for spec in specs:
        module = model.get_submodule(spec.experts.name)
        module.register_forward_hook(
            lambda module, args, output, name=spec.name: seen.setdefault(name, []).append((args, output))
        )
    found = gathered(model, specs, data)
    assert [*found] == [spec.name for spec in specs]
    for spec in specs:
        statistics, layer = found[spec.name], spec.read(model.state_dict())
        tokens = torch.cat([args[0].reshape(-1, args[0].shape[-1]) for args, _ in seen[spec.name]])
        torch.testing.assert_close(statistics.experts.tokens, tokens)
        torch.testing.assert_close(statistics.experts.weights.sum(dim=0), torch.ones(spec.num_experts))
        assert statistics.router_sees_tokens == (spec.router is not None)
        assert (statistics.shared_experts is None) == (layer.shared_experts is None)
        if spec.router is None:
            continue
        index, weights = (torch.cat([args[i] for args, _ in seen[spec.name]]) for i in (1, 2))
        outputs = torch.stack([statistics.experts.outputs(layer.experts, e) for e in range(spec.num_experts)], dim=1)
        expected = (outputs.gather(1, index[..., None].expand(-1, -1, outputs.shape[2])) * weights[..., None]).sum(1)
        output = torch.cat([output for _, output in seen[spec.name]])
        torch.testing.assert_close(expected, output, rtol=1e-3, atol=1e-3)
        took = torch.stack([(index == e).any(dim=1) for e in range(spec.num_experts)], dim=1)
        heavy = statistics.experts.weights > statistics.experts.weights.mean(dim=0)
        mixed = took.any(dim=0) & ~took.all(dim=0)
        assert torch.equal(took[:, mixed], heavy[:, mixed])


def test_memory_is_bounded():
    model = build("mixtral", dtype=torch.float32)
    specs, data = alignable_layers(model), batches(model, 3)
    every, some = gathered(model, specs, data), gathered(model, specs, data, max_tokens=10)
    for name, found in some.items():
        assert len(every[name].experts.tokens) == 54
        assert len(found.experts.tokens) == 12  # 4 of each batch
        first = every[name].experts.tokens[:18]  # the first and the last token of a batch are among them
        torch.testing.assert_close(found.experts.tokens[[0, 3]], first[[0, 17]])


def test_a_layer_of_another_function_is_left_out(monkeypatch):
    model = build("qwen2_moe", dtype=torch.float32)
    specs = alignable_layers(model)
    strange = model.get_submodule(specs[0].experts.name)
    assert _activation(model, specs[0].experts) is not None
    monkeypatch.setattr(strange, "_apply_gate", lambda gate_up: gate_up.chunk(2, dim=-1)[1].square())
    assert [*gathered(model, specs, batches(model))] == [spec.name for spec in specs[1:]]


def test_experts_that_have_no_weights_leave_their_layer_out():
    model = families.build("longcat_flash")
    specs = [spec for spec in alignable_layers(model) if spec.router]
    assert gathered(model, specs, batches(model)) == {}


def test_a_router_that_sees_other_tokens_is_known():
    model = build("mixtral", dtype=torch.float32)
    specs = alignable_layers(model)
    router = model.get_submodule(specs[0].name).gate
    router.register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
    found = gathered(model, specs, batches(model))
    assert [found[spec.name].router_sees_tokens for spec in specs] == [False, True]


def test_hooks_are_gone_afterwards():
    model = build("mixtral", dtype=torch.float32)
    gathered(model, alignable_layers(model), batches(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_halves():
    """Every other batch calibrates, the others judge; no batch does both."""
    data = [{"input_ids": torch.tensor([[number]])} for number in range(5)]
    halves = CalibrationData.of(iter(data))
    assert [*halves.fitted] == data[::2]
    assert [*halves.held_out] == data[1::2]
    assert CalibrationData.of(halves) is halves
    with pytest.raises(BadInputError, match="one batch of calibration data cannot be halved; give two or more"):
        CalibrationData.of(data[:1])


def test_the_digest_is_that_of_the_batches():
    """Whatever the order of the arguments in a batch; not whatever their names, dtypes, shapes, values or order."""
    a, b = {"x": torch.tensor([[1, 2]]), "y": torch.tensor([3])}, {"x": torch.tensor([[4, 5]]), "y": torch.tensor([6])}
    digest = CalibrationData([a, b]).digest
    assert digest == CalibrationData([dict(reversed(a.items())), b], {"dataset": "elsewhere"}).digest
    others = [
        [b, a],
        [{"z": a["x"], "y": a["y"]}, b],
        [{"x": a["x"].int(), "y": a["y"]}, b],
        [{"x": a["x"].flatten(), "y": a["y"]}, b],
        [{"x": a["x"] + 1, "y": a["y"]}, b],
    ]
    assert len({digest, *(CalibrationData(data).digest for data in others)}) == 6
    assert CalibrationData().digest is None
