import math

import pytest
import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.auto_repair import choose_repairs

from hf_moe_lmc.connectivity import borrow
from tests.models import build, inputs

PLAIN, NORMS, GRAM, TWO, ALL = (), ("norms",), ("gram",), ("norms", "moments"), ("norms", "gram", "moments")


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ({PLAIN: 0, NORMS: 0.2, ALL: 0.3}, PLAIN),
        ({PLAIN: 0, NORMS: 0, ALL: 0}, PLAIN),  # a tie changes nothing
        ({NORMS: 0, ALL: 0}, NORMS),
        ({GRAM: 0}, GRAM),
        ({NORMS: 0.2, GRAM: 0.3, TWO: 0}, TWO),
        ({NORMS: 2, GRAM: 2, TWO: 2, ALL: 0}, ALL),  # each alone is worse than nothing
        ({NORMS: math.nan, ALL: 0}, ALL),
        (dict.fromkeys((NORMS, GRAM, TWO, ALL), math.nan) | {PLAIN: 0}, PLAIN),
        ({PLAIN: math.nan, NORMS: 0}, PLAIN),
    ],
)
def test_the_subset_of_the_lowest_loss_is_kept(noise, expected):
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
        found = choose_repairs(weights, path_of, [batch], Accelerator(cpu=True))
    assert found.repairs == expected
    assert list(found.held_out_loss) == [
        "aligned",
        "aligned + norms",
        "aligned + gram",
        "aligned + moments",
        "aligned + norms + gram",
        "aligned + norms + moments",
        "aligned + gram + moments",
        "aligned + norms + gram + moments",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
