import math

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc.connectivity import borrow, linear_path
from hf_moe_lmc.connectivity.auto_repair import choose_repair
from tests.models import build, inputs


@pytest.mark.parametrize(
    ("worse", "best"),
    [({}, "none"), ({"none": 1.0}, "norms"), ({"none": 1.0, "norms": 1.0}, "rescale"), ({"norms": math.nan}, "none")],
)
def test_the_lowest_loss_wins_and_ties_change_nothing(worse, best):
    """Paths to the model itself, some of them with noise added."""
    model = build("mixtral", dtype=torch.float32)
    tokens = inputs(model)["input_ids"]
    with torch.no_grad():
        labels = torch.cat([tokens[:, :1], model(input_ids=tokens).logits[:, :-1].argmax(-1)], dim=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def path(repair: str):
        noise = worse.get(repair, 0.0)
        return lambda t: {name: tensor + noise * torch.randn(tensor.shape) for name, tensor in before.items()}

    torch.manual_seed(0)
    with borrow(model) as weights:
        paths = {"none": linear_path(weights, weights), "norms": path("norms"), "rescale": path("rescale")}
        paths["none"] = path("none") if "none" in worse else paths["none"]
        batch = {"input_ids": tokens, "labels": labels}
        found = choose_repair(weights, paths, [batch], Accelerator(cpu=True))
    assert found.repair == best
    assert list(found.held_out_loss) == ["none", "norms", "rescale"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
