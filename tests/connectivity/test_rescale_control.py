import pytest
import torch

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.connectivity import BorrowedWeights, linear_path, rescaled_path
from hf_moe_lmc.connectivity.rescale_control import output_sizes
from tests.layers import naive_expert
from tests.models import build, inputs

NAMES = ["moe_vit shared", "mixtral", "qwen2_moe"]


def test_output_sizes_equal_the_loop():
    """Every token counts for every expert, whether it was routed to it or not."""
    model = build("moe_vit shared")
    spec = moe_layers(model)[0]
    tokens = []
    handle = model.get_submodule(spec.name).register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    batch = inputs(model)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    layer, flat = spec.read(model.state_dict()), tokens[0].reshape(-1, 12)
    sizes = output_sizes(model, [spec], [batch])
    for bank, name in ((layer.experts, "experts"), (layer.shared_experts, "shared_experts")):
        expected = [torch.stack([naive_expert(bank, e, x) for x in flat]).norm() for e in range(bank.num_experts)]
        torch.testing.assert_close(sizes[f"{spec.name}.{name}"].double(), torch.stack(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_follow_the_line_and_the_ends_stay(name):
    a, b, scratch = (build(name, seed=seed, dtype=torch.float32) for seed in range(3))
    specs, calibration = moe_layers(a)[:1], [inputs(a)]
    naive = linear_path(a.state_dict(), b.state_dict())
    path = rescaled_path(BorrowedWeights(scratch), naive, specs, calibration)
    for t, model in ((0.0, a), (1.0, b)):
        state = model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in path(t).items())

    def sizes(tensors):
        scratch.load_state_dict(tensors)
        return output_sizes(scratch, specs, calibration)

    start, end, shrunk, restored = sizes(naive(0.0)), sizes(naive(1.0)), sizes(naive(0.4)), sizes(path(0.4))
    for part, found in restored.items():
        torch.testing.assert_close(found, 0.6 * start[part] + 0.4 * end[part], rtol=1e-4, atol=1e-4)
        assert (shrunk[part] < 0.9 * found).all()


def test_only_the_outputs_of_experts_change():
    a, b, scratch = (build("moe_vit shared", seed=seed, dtype=torch.float32) for seed in range(3))
    naive = linear_path(a.state_dict(), b.state_dict())
    path = rescaled_path(BorrowedWeights(scratch), naive, moe_layers(a), [inputs(a)])
    expected = naive(0.5)
    changed = {key for key, tensor in path(0.5).items() if not torch.equal(tensor, expected[key])}
    assert changed
    assert all(".down_proj" in key and ".mlp." in key for key in changed)


def test_hooks_are_gone_afterwards():
    model = build("mixtral", dtype=torch.float32)
    output_sizes(model, moe_layers(model), [inputs(model)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_dead_expert_stays_dead():
    a, b, scratch = (build("moe_vit sparse", seed=seed, dtype=torch.float32) for seed in range(3))
    with torch.no_grad():
        for model in (a, b):
            experts = model.vit.layers[0].mlp.experts
            experts.down_proj[1] = 0
            experts.down_proj_bias[1] = 0
    path = rescaled_path(
        BorrowedWeights(scratch), linear_path(a.state_dict(), b.state_dict()), moe_layers(a), [inputs(a)]
    )
    assert all(torch.isfinite(tensor).all() for tensor in path(0.5).values())
