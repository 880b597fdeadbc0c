"""The value of an alignment: laws, figures, and its looks."""

import math
from html.parser import HTMLParser

import pandas
import pytest
import torch

from hf_moe_lmc import MutualAlignment, align, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment.model_record import layer_digest
from hf_moe_lmc.errors import IncompatiblePairError
from tests.alignment.planted import same
from tests.models import MODELS, build


@pytest.fixture(scope="module")
def alignment():
    """Of a scrambled copy of Qwen2-MoE, which has shared experts and a dense layer."""
    return align(build("qwen2_moe"), scramble(build("qwen2_moe"))[0])


@pytest.mark.parametrize("name", MODELS)
def test_laws(name):
    """The inverse undoes, and the product is one after the other, bit for bit."""
    start = build(name)
    first, second = scramble(build(name), seed=1)[1], scramble(build(name), seed=2)[1]
    twice = second.apply(first.apply(build(name))).state_dict()
    assert same(second.compose(first).apply(build(name)).state_dict(), twice)
    assert not same(first.compose(second).apply(build(name)).state_dict(), twice)
    back = first.inverse().apply(first.apply(build(name)))
    assert same(back.state_dict(), start.state_dict())
    assert all(symmetry.is_identity for symmetry in first.inverse().compose(first).symmetries.values())


def test_products_of_different_models():
    a, b = align(build("mixtral"), build("mixtral")), align(build("qwen2_moe"), build("qwen2_moe"))
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.\d\.mlp"):
        a.compose(b)


def test_records_tell_orders_apart():
    """Two values that change places within one large tensor, whose sum they leave alone."""
    (spec, _) = alignable_layers(build("mixtral"))
    tensors = {name: torch.arange(512.0, dtype=torch.float64) for name in spec.tensor_names}
    record = layer_digest(spec, tensors)
    assert layer_digest(spec, {name: tensor.clone() for name, tensor in tensors.items()}) == record
    swapped = tensors[spec.tensor_names[0]].clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert layer_digest(spec, tensors | {spec.tensor_names[0]: swapped}) != record


def test_the_digest_is_that_of_the_symmetries(alignment):
    again = align(build("qwen2_moe"), scramble(build("qwen2_moe"))[0])
    assert alignment.digest == again.digest
    assert alignment.digest != alignment.inverse().digest
    assert alignment.digest == alignment.inverse().inverse().digest


def test_it_prints_in_a_few_lines(alignment):
    for shown in (alignment, alignment.inverse(), MutualAlignment((alignment, alignment), 2.0, 1.0)):
        lines = str(shown).splitlines()
        assert len(lines) <= 6
        assert max(map(len, lines)) < 300
    first, second, *_ = str(alignment).splitlines()
    assert first == "Alignment: Qwen2MoeForCausalLM to Qwen2MoeForCausalLM"
    assert second.strip() == alignment.summary()
    assert alignment.verdict().text() in str(alignment)
    assert str(alignment.inverse()).splitlines()[0] == "Alignment"


class _Cells(HTMLParser):
    """The texts of all cells."""

    def __init__(self):
        super().__init__()
        self.cells, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells.append(data)

    def handle_endtag(self, tag):
        self.inside = False


def test_notebooks_show_a_table(alignment):
    parser = _Cells()
    parser.feed(alignment._repr_html_())
    rows = alignment.layer_table()
    assert parser.cells[: len(rows[0])] == [name.replace("_", " ") for name in rows[0]]
    assert [cell for cell in parser.cells if cell in alignment.layers] == [*alignment.layers]
    assert len(parser.cells) == (1 + len(rows)) * len(rows[0])


def test_tables_for_pandas(alignment):
    layers, every = pandas.DataFrame(alignment.layer_table()), pandas.DataFrame(alignment.expert_table())
    assert layers["name"].tolist() == [*alignment.layers]
    before = math.hypot(*layers["distance_before"])
    assert f"distance {before:.4g} before" in alignment.summary()
    assert layers["distance_after"].tolist() == pytest.approx([0.0] * len(layers), abs=1e-9)
    assert set(every.columns) == {"layer", "slot", "source", "units_permuted"}
    for name, layer in alignment.layers.items():
        own = every[every["layer"] == name].sort_values("slot")
        assert own["source"].tolist() == layer.symmetry.experts.index.tolist()
        units = layer.symmetry.units.permutation.index
        stay = (units == torch.arange(units.shape[-1])).double().mean(dim=1)
        assert own["units_permuted"].tolist() == pytest.approx((1 - stay).tolist())
        row = layers[layers["name"] == name].iloc[0]
        parts = [part for part in (layer.symmetry.units, layer.symmetry.shared_units) if part]
        experts = layer.symmetry.experts.index
        assert row["experts_permuted"] == pytest.approx((experts != torch.arange(len(experts))).double().mean().item())
        moved = [(part.permutation.index != torch.arange(part.permutation.index.shape[-1])).flatten() for part in parts]
        assert row["units_permuted"] == pytest.approx(torch.cat(moved).double().mean().item())


def test_tables_without_evidence(alignment):
    assert all(row["verdict"] for row in alignment.layer_table())
    assert all(row["verdict"] is None for row in alignment.inverse().layer_table())
    assert alignment.inverse().verdict() is None


def test_several_alignments_are_a_sequence(alignment):
    several = MutualAlignment((alignment, alignment.inverse()), 2.0, 1.0)
    assert [*several] == [several[0], several[1]] == [alignment, alignment.inverse()]
    assert len(several) == 2
