import pytest

from hf_moe_lmc import align, scramble
from tests.models import MODELS, build, logits


@pytest.mark.parametrize("name", MODELS)
def test_it_moves_all_weights_and_keeps_the_function(name):
    """Says what it did, and depends on the seed only."""
    model, again, other = build(name), build(name), build(name)
    before = logits(model)
    scrambled, alignment = scramble(model, seed=3)
    assert scrambled is model
    assert float((logits(model) - before).abs().max() / before.abs().max()) < 2e-5
    assert scramble(again, seed=3)[1] == alignment != scramble(other, seed=4)[1]
    back = align(build(name), model, config="joint")
    for layer, found in back.layers.items():
        planted_layer = alignment.layers[layer]
        assert found.symmetry == planted_layer.symmetry.inverse()
        assert found.distance_before == pytest.approx(planted_layer.distance_after)
        assert found.distance_before > 1.0
