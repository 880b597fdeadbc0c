"""Weights written as checkpoints, step by step, into a new folder."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args
from uuid import uuid4

import torch
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import (
    MANIFEST_NAME,
    CheckpointWriter,
    Placement,
    StagedFolder,
    Written,
    find_companions,
    output_folder,
    place,
)
from hf_moe_lmc.errors import BadInputError, check_choice
from hf_moe_lmc.names import Layout, Quantisation
from hf_moe_lmc.progress import Progress
from hf_moe_lmc.workers import one_thread_per_operation

from .config import versions
from .job import Team, processes
from .opened_model import OpenedModel
from .weights import Weights

FORMAT = 2  # of the manifest
TOKEN_NAME = "token"  # of a file that the processes of a job look for
MOST_NAMED = 4  # files or tensors in one sentence
STEP_BYTES = 64 * 2**20  # small tensors are taken together up to here

Finish = Callable[[Path, str], object]
"""Given the folder of a checkpoint under construction, and the name that it will have."""


@dataclass(frozen=True)
class WriteOptions:
    """The form of a written checkpoint.

    Args:
        layout: "kept", keys and shards as the input has them; "original", the keys that Transformers saves by default;
            "fused", module names.
        dtype: of all floating-point tensors; None keeps that of every tensor of the input.
        overwrite: whether an earlier output of this package may be replaced.
        quantise: how weights of linears and experts are stored, routers aside; None as they are.
    """

    layout: Layout = "kept"
    dtype: torch.dtype | None = None
    overwrite: bool = False
    quantise: Quantisation | None = None

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, get_args(Layout))
        if self.quantise:
            check_choice("quantise", self.quantise, get_args(Quantisation))


@dataclass(frozen=True)
class Output:
    """One checkpoint to be written.

    Args:
        weights: of every module name of `like`; each is asked for once.
        like: the model that gives keys, shapes, dtypes, configuration, tokenizer and other small files.
        record: models and transforms that the weights are made of, in JSON values; part of the manifest.
    """

    weights: Weights = field(repr=False)
    like: OpenedModel
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """Tensors that are computed and written together, and then forgotten.

    Args:
        name: of the layer, or of the first tensor.
        names: module names of the tensors.
        nbytes: their size in the input.
    """

    name: str
    names: tuple[str, ...]
    nbytes: int


@one_thread_per_operation()
def write_checkpoints(
    folder: Path,
    outputs: Mapping[str, Output],
    inputs: Sequence[OpenedModel],
    options: WriteOptions,
    finish: Finish = lambda folder, name: None,
) -> None:
    """Write checkpoints, all in one pass over their tensors; memory holds one step at a time.

    `folder` appears complete or not at all. Killed and called again with the same arguments, it goes on where it was.
    All processes of a job must call this: they divide the steps, each writing to its own places in the files, and read
    again what was written. One of them makes the folder and puts it in its place; one that does not see it, since it
    runs on another machine without the same disk, waits. Live models are written by one process.

    Args:
        folder: new, or with `options.overwrite` an earlier output.
        outputs: folder in `folder` ("" is `folder` itself) -> a checkpoint.
        inputs: the models that the weights are computed from.
        options: the form of all checkpoints.
        finish: called for every checkpoint once its weights are complete, before `folder` appears; writes the
            card, for example.

    Raises:
        OutputError: the output folder may not be written.
        BadInputError: a result is NaN, infinite, or too large for its dtype.
    """
    about = {
        "layout": options.layout,
        "dtype": _name(options.dtype) if options.dtype else None,
        **({"quantise": options.quantise} if options.quantise else {}),
        "versions": versions(),
    }
    records = {name: output.record for name, output in outputs.items()}
    recipe = {"inputs": [model.fingerprint for model in inputs], "outputs": records} | about
    size = sum(written_bytes(output.like, options) for output in outputs.values())
    paths = [path for model in inputs for path in model.paths]
    team, main = Team.of(inputs), processes().is_main_process
    if main or team.size > 1:
        with output_folder(folder, recipe, paths, size, options.overwrite) if main else nullcontext() as made:
            digests = _write_weights(outputs, inputs, made, options, team)
            if made:
                for name, output in outputs.items():
                    beside = {"carried": output.like.carried, "left_behind": output.like.left_behind}
                    beside = {key: value for key, value in beside.items() if value}
                    manifest = {"format": FORMAT, **output.record, **about, **beside, "xxh3": digests[name]}
                    (made.path / name / MANIFEST_NAME).write_bytes(_as_json(manifest))
                    finish(made.path / name, (folder / name).absolute().name)
                if "" not in outputs:
                    manifest = {"format": FORMAT, "folders": records} | about
                    (made.path / MANIFEST_NAME).write_bytes(_as_json(manifest))
    processes().wait_for_everyone()


def _write_weights(
    outputs: Mapping[str, Output],
    inputs: Sequence[OpenedModel],
    made: StagedFolder | None,
    options: WriteOptions,
    team: Team,
) -> dict[str, dict[str, str]]:
    """Write all but manifests and cards into the folder that the first process has made, and read it again.

    Returns:
        folder in the folder -> the XXH3 digests of its tensors.
    """
    writers = _writers(outputs, made.path, options) if made else {}
    if made:
        for name, output in outputs.items():  # before the work, for one of them may be unreadable
            _write_companions(output.like, made.path / name, options, writers[name].quantisation)
    staged, seen = _shown(made, team)
    crew = [number for number, sees in enumerate(team.gather(seen)) if sees]
    mine = slice(crew.index(team.index), None, len(crew)) if seen else slice(0)
    writers = writers or (_writers(outputs, staged.path, options) if seen else {})
    journal = staged.journal.of_process(team.index) if seen else staged.journal
    steps = _steps_of(outputs, writers, inputs)
    left = [step for step in steps if step.name not in staged.journal.done][mine]
    with _progress(steps, left, hidden=team.index > 0) as bar:
        for step in left:
            journal.record(step.name, [_write(writers[name], outputs[name], step, inputs) for name in outputs])
            bar.update(step.nbytes)
    for model in inputs:
        model.check_unchanged()
    done = {step: note for own in [staged.journal.done, *team.gather(journal.done)] for step, note in own.items()}
    digests = {}
    for number, name in enumerate(outputs):
        written = {key: result for note in done.values() for key, result in note[number].items()}
        if seen:
            writers[name].read_again(written, writers[name].keys[mine])
        team.gather(None)  # all have read again what they should
        if made:
            writers[name].finish(written)
            digests[name] = {key: written[key][0] for key in writers[name].keys}
    return digests


def _shown(made: StagedFolder | None, team: Team) -> tuple[StagedFolder, bool]:
    """The folder that the first process has made, and whether this one sees it, too."""
    token = uuid4().hex
    if made and team.size > 1:
        (made.scratch / TOKEN_NAME).write_text(token)
    staged, token = cast(tuple[StagedFolder, str], team.broadcast((made, token)))
    shown = staged.scratch / TOKEN_NAME
    return staged, bool(made) or (shown.is_file() and shown.read_text() == token)


def _writers(outputs: Mapping[str, Output], folder: Path, options: WriteOptions) -> dict[str, CheckpointWriter]:
    """Writers of all outputs, whose files they make."""
    return {
        name: CheckpointWriter(
            folder / name,
            _place(output.like, folder / name, options),
            _skeleton(output.like),
        )
        for name, output in outputs.items()
    }


def written_bytes(like: OpenedModel, options: WriteOptions) -> int:
    """Size of the tensors of one checkpoint like that of a model."""
    return sum(tensor.nbytes for tensor in _place(like, Path(), options).values())


def cut_steps(
    sizes: Mapping[str, int], layers: Iterable[MoeLayerSpec], groups: Iterable[Sequence[str]]
) -> tuple[Step, ...]:
    """The finest cut that keeps every layer, and every group of tensors stored in one, in one piece.

    Args:
        sizes: module name -> bytes, in the order of the checkpoint.
        layers: the Mixture-of-Experts layers.
        groups: module names that belong together.
    """
    part = {name: name for name in sizes}

    def root(name: str) -> str:
        while part[name] != name:
            part[name] = name = part[part[name]]
        return name

    owners = [(layer.name, [name for name in layer.tensor_names if name in part]) for layer in layers]
    for names in [*groups, *(names for _, names in owners)]:
        for name in names[1:]:
            part[root(name)] = root(names[0])
    pieces: dict[str, list[str]] = {}
    for name in sizes:
        pieces.setdefault(root(name), []).append(name)
    layer_of = {root(names[0]): layer for layer, names in reversed(owners) if names}
    steps, loose = [], []

    def flush() -> None:
        if loose:
            steps.append(Step(loose[0], tuple(loose), sum(sizes[name] for name in loose)))
            loose.clear()

    for key, names in pieces.items():
        size = sum(sizes[name] for name in names)
        if key in layer_of:
            flush()
            steps.append(Step(layer_of[key], tuple(names), size))
        else:
            if sum(sizes[name] for name in loose) + size > STEP_BYTES:
                flush()
            loose.extend(names)
    flush()
    return tuple(steps)


def _steps_of(
    outputs: Mapping[str, Output], writers: Mapping[str, CheckpointWriter], inputs: Sequence[OpenedModel]
) -> tuple[Step, ...]:
    sizes = {name: size for output in reversed(list(outputs.values())) for name, size in output.like.sizes.items()}
    owners = [*(model.checkpoint for model in inputs if model.checkpoint), *writers.values()]
    groups = [[name for name in group.names if name in sizes] for owner in owners for group in owner.groups]
    layers = {spec.name: spec for output in outputs.values() for spec in output.like.all_layers}
    return cut_steps(sizes, layers.values(), [group for group in groups if group])


def _write(writer: CheckpointWriter, output: Output, step: Step, inputs: Sequence[OpenedModel]) -> Written:
    names = [name for name in step.names if name in output.like.sizes]
    try:
        return writer.write(output.weights, names)
    except BadInputError:
        for model in inputs:  # says more, if the fault is theirs
            model.check_finite(name for name in names if name in model.sizes)
        raise


def _place(model: OpenedModel, folder: Path, options: WriteOptions) -> Placement:
    routers = [name for spec in model.all_layers if spec.router for _, name in spec.router.tensors]
    source = model.checkpoint or _skeleton(model)
    return place(source, folder, options.layout, options.dtype, options.quantise, routers)


def _skeleton(model: OpenedModel) -> PreTrainedModel:
    if not isinstance(model.model, PreTrainedModel):
        raise BadInputError(f"a {model.name} is no model of Transformers, and cannot be written as its checkpoint")
    return model.model


def notes(carried: Sequence[str], left_behind: Mapping[str, str]) -> list[str]:
    """Sentences on tensors that Transformers ignores, and on files that are not copied, those of a reason in one."""
    by_reason = dict[str, list[str]]()
    for path, reason in left_behind.items():
        by_reason.setdefault(reason, []).append(path)
    lines = [f"left behind: {_some(paths)} ({reason})" for reason, paths in by_reason.items()]
    if carried:
        lines.append(f"carried along, though Transformers ignores it: {_some(carried)}")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _progress(steps: Sequence[Step], left: Sequence[Step], hidden: bool) -> Progress:
    """Of all that is written, by whichever process, where it begins; of this one's part where several divide it."""
    total, behind = (sum(step.nbytes for step in some) for some in (steps, [s for s in steps if s not in left]))
    return Progress(
        total=total, initial=behind, desc="writing", unit="B", unit_scale=True, unit_divisor=1000, disable=hidden
    )


def _write_companions(
    like: OpenedModel, target: Path, options: WriteOptions, quantisation: Mapping[str, Any] | None
) -> None:
    """Write the small files of a model, config.json with the dtype and the quantisation that were written."""
    if like.source is None:
        model = _skeleton(like)
        model.config.save_pretrained(target)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(target)
        config = json.loads((target / "config.json").read_bytes())
        config |= {"architectures": [type(model).__name__], "dtype": _name(model.dtype)}
        (target / "config.json").write_bytes(_as_json(config))
    else:
        find_companions(like.source.folder, like.source.listed).copy(target)
    if options.dtype or quantisation:
        config = json.loads((target / "config.json").read_bytes())
        config = _with_dtype(config, options.dtype) if options.dtype else config
        config |= {"quantization_config": quantisation} if quantisation else {}
        (target / "config.json").write_bytes(_as_json(config))


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config.json, and the configurations of parts in it, of a model in another dtype."""
    known = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return known | {key: _name(dtype) for key in ("dtype", "torch_dtype") if key in config}


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
