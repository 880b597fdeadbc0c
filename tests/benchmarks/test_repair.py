import json
from copy import deepcopy

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import repair
from hf_moe_lmc.connectivity import VARIANTS
from hf_moe_lmc.connectivity.data import Blocks
from tests.models import build

SINGLE = ("norms", "moments")


@pytest.fixture(scope="module")
def rows():
    """Two pairs of random models; the second model of the second pair is a copy of the first one."""
    tokens = torch.randint(30, (8, 6), generator=torch.Generator().manual_seed(0))
    data = DataLoader(Blocks(tokens), batch_size=4)
    a, b = (build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "SINGLE", SINGLE)
        patch.setattr(repair, "ORDERS", ("gate",))
        measured = [repair.measured(a, other, data, data) for other in (b, deepcopy(a))]
    return [
        json.loads(json.dumps({"cell": "Mixtral", "backbone": 1, "pair": pair} | row))
        for pair, row in zip([(1, 2), (1, 3)], measured, strict=True)
    ]


def test_every_variant_has_every_repair_and_chooses_for_itself(rows):
    variants = [*VARIANTS, "gate order", "shuffled"]
    repairs = ["", *(f" + {name}" for name in (*SINGLE, "auto", "chain"))]
    for row in rows:
        expected = [f"{variant}{name}" for variant in variants for name in repairs] + ["endpoint experts", "pick"]
        assert list(row["above"]) == expected
        for variant in variants:
            chain = row["chosen"][variant]
            if chain in ([], ["norms"], ["moments"]):
                assert row["above"][f"{variant} + auto"] == row["above"][" + ".join((variant, *chain))]


def test_a_model_and_itself(rows):
    """Nothing is lost unless it is rewritten at random or shuffled."""
    above = rows[1]["above"]
    for path in ("naive", "naive + norms", "units", "aligned", "aligned + auto", "endpoint experts", "pick"):
        assert above[path] == pytest.approx(0, abs=1e-5)
    assert abs(above["random"]) > 1e-4
    assert abs(above["shuffled"]) > 1e-4


def test_the_table(rows):
    lines = repair.table([*rows[:1], rows[0] | {"pair": [1, 3]}]).splitlines()
    assert lines[0] == "| path | Mixtral |"
    above = rows[0]["above"]
    share = 100 * above["pick"] / above["naive"]
    assert next(line for line in lines if line.startswith("| pick")).startswith(f"| pick | {share:.1f} [{share:.1f}, ")
    assert lines[-1] == "| pairs | 2 |"
