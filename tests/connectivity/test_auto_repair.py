import math

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc.connectivity import borrow
from hf_moe_lmc.connectivity.auto_repair import choose_repairs
from tests.models import build, inputs

PLAIN, NORMS, RESCALE, ROUTER = (), ("norms",), ("rescale",), ("router",)
BOTH = ("rescale", "norms")


@pytest.mark.parametrize(
    ("noise", "expected", "tried"),
    [
        ({PLAIN: 0, NORMS: 0.2, RESCALE: 0.3}, PLAIN, 4),
        ({PLAIN: 0, NORMS: 0, RESCALE: 0}, PLAIN, 4),  # a tie changes nothing
        ({PLAIN: 1, NORMS: 0}, NORMS, 6),
        ({PLAIN: 1, NORMS: 0.3, RESCALE: 0.2, BOTH: 0}, BOTH, 7),  # the better one first, then the other on top
        ({PLAIN: 1, NORMS: math.nan, RESCALE: math.nan}, PLAIN, 4),
        ({PLAIN: math.nan, NORMS: 0}, PLAIN, 4),
    ],
)
def test_repairs_are_added_while_the_loss_falls(noise, expected, tried):
    """Paths to the model itself, with more or less noise."""
    model = build("mixtral", dtype=torch.float32)
    tokens = inputs(model)["input_ids"]
    with torch.no_grad():
        labels = torch.cat([tokens[:, :1], model(input_ids=tokens).logits[:, :-1].argmax(-1)], dim=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    directions = {name: torch.randn(tensor.shape) for name, tensor in before.items()}

    def path_of(repairs):
        size = noise.get(tuple(repairs), 1)
        return lambda t: {name: tensor + size * directions[name] for name, tensor in before.items()}

    with borrow(model) as weights:
        batch = {"input_ids": tokens, "labels": labels}
        found = choose_repairs(weights, path_of, [batch], Accelerator(cpu=True), ("norms", "rescale", "router"))
    assert found.repairs == expected
    assert list(found.held_out_loss)[:4] == [
        "aligned", "aligned + norms", "aligned + rescale", "aligned + router"
    ]  # fmt: skip
    assert len(found.held_out_loss) == tried
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
