"""The battery over every Mixture-of-Experts family of the installed Transformers."""

import pytest

from hf_moe_lmc.errors import UnsupportedArchitectureError
from tests import families
from tests.battery import CHANGED, PRESERVED, check


@pytest.mark.parametrize("family", families.supported())
def test_symmetries_hold_and_controls_break(family):
    result = check(family)
    assert not result.failures
    assert result.preserved
    assert result.changed
    assert result.recovered


@pytest.mark.parametrize("family", sorted({*families.HOLDERS} & {*families.supported()}))
def test_as_many_experts_as_hidden_units(family):
    """The axis of experts is never told by its length."""
    assert not check(family, experts=families.HIDDEN, expert_orders=("gate",)).failures


ONE_EXPERT = ["aria", "cohere2_moe", "gpt_oss", "granitemoe", "hunyuan_v1_moe", "jetmoe", "minimax", "mixtral"]
ONE_EXPERT += ["openai_privacy_filter", "qwen3_5_moe", "qwen3_omni_moe.thinker", "qwen3_vl_moe"]


@pytest.mark.parametrize("family", sorted(set(families.supported()) & {*ONE_EXPERT, "olmoe", "jamba"}))
def test_the_router_of_one_expert(family, monkeypatch):
    """Its scale is free where the one weight is normalised to 1, and only there."""
    for field in families.EXPERTS_PER_TOKEN:
        monkeypatch.setitem(families.SIZES, field, 1)
    result = check(family, expert_orders=())
    if family in ONE_EXPERT:
        assert result.preserved["a router scale"] < PRESERVED
    else:
        assert result.changed["a router scale"] > CHANGED


def test_what_is_refused_is_refused_by_name():
    for family in families.REFUSED.keys() & set(families.available()):
        with pytest.raises(UnsupportedArchitectureError, match=families.REFUSED[family]):
            check(family)


def test_no_family_of_the_installed_transformers_is_forgotten():
    covered = {family.folder for family in families.FAMILIES.values()} | families.NOT_COVERED.keys()
    assert families.discover() <= covered
