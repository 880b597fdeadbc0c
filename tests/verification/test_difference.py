import math

import pytest
import torch

from hf_moe_lmc.verification.difference import relative_difference, row_differences


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1.0], math.inf),
        ([-math.inf, 4.0], [-math.inf, 3.0], 0.25),
        ([-math.inf, 4.0], [1.0, 4.0], math.inf),
        ([1.0, 4.0], [math.nan, 4.0], math.inf),
        ([math.nan, 4.0], [math.nan, 4.0], math.inf),
    ],
)
def test_by_hand(expected, found, difference):
    assert relative_difference(torch.tensor(expected), torch.tensor(found)) == difference


def test_rows_by_hand():
    expected = torch.tensor([[[1.0, -4.0], [2.0, 0.0]], [[0.0, 0.0], [math.inf, 1.0]]])
    found = torch.tensor([[[1.0, -4.0], [2.0, 1.0]], [[0.0, math.nan], [math.inf, 3.0]]])
    assert row_differences(expected, found).tolist() == [0.0, 0.25, math.inf, 0.5]
