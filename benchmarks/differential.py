"""What is written, beside the same merge computed in memory: random families, dtypes, shards, layouts, t, repairs.

python -m benchmarks.differential [--cases 500] [--seed 0]

Every case draws a family, two models or three of it, a random symmetric rewrite of every model but the first, a dtype
for every stored tensor, shards, the layout and the dtype of the output, t or shares, and repairs without data. The
checkpoints are merged (or one is rewritten) by this package as a stream. Beside it, Transformers loads the same
checkpoints in float64, and the formulas are computed layer by layer: nothing of `checkpoints/` and nothing of
`alignment/weights.py` takes part. Transformers then loads what was written, without a missing or an unexpected key.
A rewritten checkpoint must be equal to the last bit, a merge up to the rounding of float32 and of its dtype. Exits with
1 if a case is not.
"""

import argparse
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import Alignment, MoeAligner, apply, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.merging.gauge import in_gauge_of
from hf_moe_lmc.merging.repairs import repaired_layer
from hf_moe_lmc.moe import act
from tests.families import FAMILIES, build, supported

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPAIRS = ((), (), ("norms",), ("gram",), ("norms", "gram"))
ROUNDING = 1e-5  # of float32 arithmetic, relative to the largest value of a tensor
GRAM_ROUNDING = 1e-3  # a map between Gram matrices, whose smallest eigenvalues are near 0


@dataclass(frozen=True)
class Case:
    """One case; all of it follows from the number `seed`.

    Args:
        family: of `tests.families`.
        models: how many; one is rewritten, several are merged.
        experts: of a layer.
        t: points of two models, each a folder; or empty, for shares.
        shares: one for each of several models.
        repairs, layout, dtype: of the merge.
        mixed: whether every stored tensor has a dtype of its own.
        shard_bytes: the most in one file of an input.
        original: whether inputs are stored under the keys that Transformers saves by default, not module names.
    """

    seed: int
    family: str
    models: int
    experts: int
    t: tuple[float, ...]
    shares: tuple[float, ...]
    repairs: tuple[str, ...]
    layout: str
    dtype: torch.dtype | None
    mixed: bool
    shard_bytes: int
    original: bool

    @classmethod
    def draw(cls, seed: int) -> "Case":
        """The case of this seed."""
        draw = random.Random(seed)
        models, shares = draw.choice((1, 2, 2, 3)), ()
        t = tuple(draw.choice(((0.5,), (0.25, 0.75), (0.0, 0.3, 1.0)))) if models == 2 else ()
        if models == 3:
            shares = (*draw.choices((0.0, 1.0, 2.0, 0.5), k=2), 1.0)
        return cls(
            seed,
            draw.choice(supported()),
            models,
            draw.choice((6, 12)),
            t,
            shares,
            draw.choice(REPAIRS) if models > 1 else (),
            draw.choice(("kept", "kept", "original", "fused")),
            draw.choice((None, None, *DTYPES)) if models > 1 else None,
            draw.random() < 0.5,
            draw.choice((10_000, 50_000, 10**9)),
            draw.random() < 0.75,
        )


def check(case: Case, folder: Path) -> None:
    """Write, compute beside it, compare.

    Raises:
        AssertionError: they differ.
    """
    folders, alignments = _write_inputs(case, folder)
    if case.models == 1:
        apply(alignments[0], folders[0], folder / "out", layout=case.layout)
        _compare(folder / "out", _rewritten(_load(folders[0]), alignments[0]).state_dict(), {}, exact=True)
        return
    MoeAligner.from_pretrained(*folders).merge(
        alignments,
        t=case.t[0] if len(case.t) == 1 else case.t or None,
        output=folder / "out",
        layout=case.layout,
        dtype=case.dtype,
        repairs=case.repairs,
        force=True,
        **({"shares": case.shares} if case.shares else {}),
    )
    loaded = [_load(folders[0]), *(_rewritten(_load(f), a) for f, a in zip(folders[1:], alignments, strict=True))]
    for name, shares in _points(case).items():
        _compare(folder / "out" / name, *_merged(loaded, shares, case.repairs), exact=False)


def _write_inputs(case: Case, folder: Path) -> tuple[list[Path], list[Alignment]]:
    """The folders of the models, and the alignment of every one but the first; of one model its own."""
    draw, folders, alignments = random.Random(case.seed), [], []
    tables: dict[str, Tensor] = {}  # of integers, which aligned models must share to be merged
    for number in range(case.models):
        model = build(case.family, experts=case.experts, seed=case.seed + number)
        own = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
        tables = tables or {name: tensor.clone() for name, tensor in own.items()}
        for name, tensor in own.items():
            tensor.copy_(tables[name])
        folders.append(folder / f"model-{number}")
        if number or case.models == 1:
            alignments.append(scramble(model, case.seed + 100 + number)[1].inverse())
        model.save_pretrained(folders[-1], max_shard_size=case.shard_bytes, save_original_format=case.original)
        if case.mixed:
            for file in sorted(folders[-1].glob("*.safetensors")):
                tensors = {key: _cast(tensor, draw) for key, tensor in sorted(load_file(file).items())}
                save_file(tensors, file, {"format": "pt"})
    return folders, alignments


def _cast(tensor: Tensor, draw: random.Random) -> Tensor:
    return tensor.to(draw.choice(DTYPES)) if tensor.dtype == torch.float32 else tensor


def _load(folder: Path) -> PreTrainedModel:
    """The model in a folder, in float64, as Transformers reads it."""
    (name,) = json.loads((folder / "config.json").read_bytes())["architectures"]
    kind = next(family for family in FAMILIES.values() if family.model == name).model_class()
    model, info = kind.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    wrong = {name: found for name, found in info.items() if found and name != "error_msgs"}
    assert not wrong, f"{folder}: {wrong}"
    return model.eval()


def _rewritten(model: PreTrainedModel, alignment: Alignment) -> PreTrainedModel:
    """`model` under the symmetries of an alignment."""
    state = model.state_dict()
    for spec in alignable_layers(model):
        layer = act(alignment.layers[spec.name].symmetry, spec.read(state))
        for name, tensor in spec.write(layer, state).items():
            state[name].copy_(tensor.clone())
    return model


def _points(case: Case) -> dict[str, tuple[float, ...]]:
    """Folder in the output -> shares of sum 1."""
    if case.shares:
        return {"": tuple(share / sum(case.shares) for share in case.shares)}
    return {f"t-{t:.12g}" if len(case.t) > 1 else "": (1 - t, t) for t in case.t}


def _merged(
    models: Sequence[PreTrainedModel], shares: Sequence[float], repairs: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The merge at these shares, and the relative rounding of repaired tensors by name."""
    used = [(model, share) for model, share in zip(models, shares, strict=True) if share]
    states, own = [model.state_dict() for model, _ in used], [share for _, share in used]
    result = {name: _mean([state[name] for state in states], own) for name in states[0]}
    rounding: dict[str, float] = {}
    if len(used) > 1:
        for spec in alignable_layers(used[0][0]):
            first, *others = (spec.read(state) for state in states)
            # The merge of aligned models does not depend on free scales.
            layer = repaired_layer([first, *(in_gauge_of(first, other) for other in others)], own, repairs)
            written = spec.write(layer, result)
            result |= {name: tensor.clone() for name, tensor in written.items()}
            rounding |= dict.fromkeys(written, GRAM_ROUNDING if "gram" in repairs else ROUNDING)
    return result, rounding


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([share * tensor for share, tensor in zip(shares, tensors, strict=True)]).sum(dim=0)


def _compare(folder: Path, wanted: Mapping[str, Tensor], rounding: Mapping[str, float], exact: bool) -> None:
    """The output as Transformers loads it, beside what it should hold."""
    stored = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
    narrow = max(torch.finfo(tensor.dtype).eps for tensor in stored if tensor.is_floating_point())
    found = _load(folder).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if exact or not tensor.is_floating_point():
            assert torch.equal(tensor, wanted[name]), f"{name} is not equal"
            continue
        limit = rounding.get(name, ROUNDING) * wanted[name].abs().max() + narrow * wanted[name].abs()
        excess = ((tensor - wanted[name]).abs() - limit).max()
        assert excess <= 0, f"{name} is off by {excess:.2e} more than rounding"


def main() -> int:
    """Run the cases, and count them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds, families, wrong = Counter[str](), set[str](), 0
    for seed in range(options.seed, options.seed + options.cases):
        case = Case.draw(seed)
        try:
            with tempfile.TemporaryDirectory() as folder:
                check(case, Path(folder))
        except Exception:  # a counterexample, of whatever kind
            wrong += 1
            sys.stdout.write(f"{case}\n{traceback.format_exc()}\n")
        kinds[("rewritten", "two models", "three models")[case.models - 1]] += 1
        families.add(case.family)
    sys.stdout.write(f"{options.cases} cases, {len(families)} families, {dict(kinds)}: {wrong} wrong\n")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
