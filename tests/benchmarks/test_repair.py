import json
from copy import deepcopy

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import repair
from hf_moe_lmc.connectivity.data import Blocks
from tests.models import build

CHECKED = ("naive", "random", "aligned")


@pytest.fixture(scope="module")
def rows():
    """Two pairs of random models; the second model of the second pair is a copy of the first one."""
    tokens = torch.randint(30, (8, 6), generator=torch.Generator().manual_seed(0))
    data = DataLoader(Blocks(tokens), batch_size=4)
    a, b = (build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1))
    every = repair.variants

    def some(pair, alignment):
        found = every(pair, alignment)
        assert set(CHECKED) < set(found)
        return {name: found[name] for name in CHECKED}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "SINGLE", ("norms",))
        patch.setattr(repair, "variants", some)
        measured = [repair.measured(a, other, data, data) for other in (b, deepcopy(a))]
    return [
        json.loads(json.dumps({"cell": "Mixtral", "backbone": 1, "pair": pair} | row))
        for pair, row in zip([(1, 2), (1, 3)], measured, strict=True)
    ]


def test_every_variant_has_every_repair_and_chooses_for_itself(rows):
    for row in rows:
        names = {"naive": (" + norms", " + auto"), "random": (" + auto",), "aligned": (" + norms", " + auto")}
        paths = [f"{variant}{name}" for variant in CHECKED for name in ("", *names[variant])]
        assert list(row["above"]) == [*paths, "endpoint experts", "pick", "aligned, pick below 0.5"]
        for variant in CHECKED:
            if not row["chosen"][variant]:
                assert row["above"][f"{variant} + auto"] == row["above"][variant]


def test_a_model_and_itself(rows):
    """Nothing is lost unless it is rewritten at random."""
    above = rows[1]["above"]
    for path in ("naive", "naive + norms", "aligned", "aligned + auto", "endpoint experts", "pick"):
        assert above[path] == pytest.approx(0, abs=1e-5)
    assert abs(above["random"]) > 1e-4


def test_the_table(rows):
    above = {path: abs(value) for path, value in rows[0]["above"].items()}  # as of trained models
    row = rows[0] | {"above": above}
    lines = repair.table([row, row | {"pair": [1, 3]}]).splitlines()
    assert lines[0] == "| path | Mixtral |"
    share = 100 * above["pick"] / above["naive"]
    assert next(line for line in lines if line.startswith("| pick")).startswith(f"| pick | {share:.1f} [{share:.1f}, ")
    assert lines[-1] == "| pairs | 2 |"
