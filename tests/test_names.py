"""Names that are offered are those that exist."""

import argparse
import subprocess
import sys
from typing import get_args

import pytest
import torch

from hf_moe_lmc import align
from hf_moe_lmc.cli.parser import command_line
from hf_moe_lmc.connectivity import VARIANTS
from hf_moe_lmc.merging import AUTOMATIC, REPAIRS
from hf_moe_lmc.modeling import MoeGPT2Config
from hf_moe_lmc.names import Dtype, ExpertOrder, Layout, MoeVariant, Repair, Variant
from tests.models import build


def test_tables_have_exactly_the_names_that_are_offered():
    assert tuple(REPAIRS) == get_args(Repair)
    assert tuple(VARIANTS) == get_args(Variant)
    assert {*AUTOMATIC} < {*REPAIRS}


def test_dtypes_are_those_of_torch():
    assert all(getattr(torch, name).is_floating_point for name in get_args(Dtype))


@pytest.mark.parametrize("variant", get_args(MoeVariant))
def test_variants_of_the_papers_models(variant):
    assert MoeGPT2Config(moe_variant=variant).moe_variant == variant


@pytest.mark.parametrize("order", [order for order in get_args(ExpertOrder) if order != "none"])
def test_expert_orders_match(order):
    assert align(build("mixtral"), build("mixtral", seed=1), config=order).layers


def _choices() -> dict[tuple[str, str], tuple[str, ...]]:
    """(command, flag) -> what may be chosen."""
    (commands,) = [action for action in command_line()._actions if isinstance(action, argparse._SubParsersAction)]
    return {
        (name, action.option_strings[-1]): tuple(action.choices)
        for name, command in commands.choices.items()
        for action in command._actions
        if action.choices and action.option_strings
    }


@pytest.mark.parametrize(
    ("command", "flag", "names"),
    [
        ("merge", "--repair", {*get_args(Repair), "auto"}),
        ("evaluate", "--repair", {*get_args(Repair), "auto"}),
        ("evaluate", "--variants", {*get_args(Variant)}),
        ("merge", "--layout", {*get_args(Layout)}),
        ("merge", "--dtype", {*get_args(Dtype)}),
        ("merge", "--expert-order", {*get_args(ExpertOrder)}),
        ("align", "--expert-order", {*get_args(ExpertOrder)} - {"none"}),
    ],
)
def test_the_command_line_offers_them(command, flag, names):
    assert {*_choices()[command, flag]} == names


def test_they_come_without_torch():
    program = "import sys, hf_moe_lmc.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
