"""Checkpoints rewritten step by step into new folders."""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from hf_moe_lmc.checkpoints import (
    COMPANIONS,
    MANIFEST_NAME,
    CheckpointWriter,
    Layout,
    output_folder,
    place,
)
from hf_moe_lmc.errors import BadInputError

from .opened_model import OpenedModel
from .steps import Step, cut_steps
from .versions import versions

Compute = Callable[[Step], Iterable[dict[str, Tensor]]]
"""A step -> its new tensors, for one output after the other."""


@dataclass(frozen=True)
class OutputOptions:
    """How a checkpoint is written.

    Args:
        layout: "kept", keys and shards as the reference has them; "original", the keys that Transformers saves by
            default; "fused", module names.
        dtype: of all floating-point tensors; None keeps that of every tensor of the reference.
        overwrite: whether an earlier output of this package may be replaced.
    """

    layout: Layout = "kept"
    dtype: torch.dtype | None = None
    overwrite: bool = False


def write_checkpoints(
    model: OpenedModel,
    output: Path,
    recipes: Mapping[str, Mapping[str, Any]],
    compute: Compute,
    others: Sequence[OpenedModel],
    options: OutputOptions,
) -> None:
    """Write checkpoints like that of `model`, all in one pass over its tensors; memory holds one step of it at a time.

    `output` appears complete or not at all. Killed and called again with the same arguments, it goes on where it was.

    Args:
        model: gives keys, shapes, tokenizer and other small files.
        output: a new folder.
        recipes: folder in `output` ("" is `output` itself) -> what is done to which weights, in JSON values; part of
            the manifest.
        compute: the new tensors of a step under module names.
        others: further checkpoints that `compute` reads.
        options: how they are written.

    Raises:
        OutputError: the output folder may not be written.
        BadInputError: a result is NaN, infinite, or too large for its dtype.
    """
    inputs = [opened.checkpoint for opened in (model, *others)]
    about = _about(options)
    recipe = {"inputs": [identity(opened) for opened in (model, *others)], "outputs": recipes} | about
    size = len(recipes) * written_bytes(model, options)
    with output_folder(output, recipe, read_paths(model, *others), size, options.overwrite) as staged:
        writers = [
            CheckpointWriter(folder, place(inputs[0], folder, options.layout, options.dtype), inputs[0].model)
            for folder in map(staged.path.joinpath, recipes)
        ]
        groups = [group.names for owner in (*inputs, *writers) for group in owner.groups]
        steps = cut_steps(model.sizes, model.layers, groups)
        with _progress(steps, staged.journal.done) as bar:
            for step in steps:
                if step.name not in staged.journal.done:
                    tensors = zip(writers, compute(step), strict=True)
                    digests = [_write(writer, own, step, (model, *others)) for writer, own in tensors]
                    staged.journal.record(step.name, digests)
                    bar.update(step.nbytes)
        for opened in (model, *others):
            opened.check_unchanged()
        for number, (folder, own) in enumerate(recipes.items()):
            digests = {key: digest for step in staged.journal.done.values() for key, digest in step[number].items()}
            writers[number].finish(digests)
            _copy_companions(inputs[0].folder, staged.path / folder, options)
            _write_manifest(staged.path / folder, {**own, **about, "sha256": digests})
        if "" not in recipes:
            _write_manifest(staged.path, {"folders": recipes} | about)


def read_paths(*models: OpenedModel) -> list[Path]:
    """Folders and files of checkpoints; where files are links, as in a cache of the Hub, they may lie elsewhere."""
    return [path for model in models for path in (model.checkpoint.folder, *model.checkpoint.states)]


def written_bytes(model: OpenedModel, options: OutputOptions) -> int:
    """Size of the tensors of one checkpoint like that of `model`."""
    return sum(tensor.nbytes for tensor in place(model.checkpoint, Path(), options.layout, options.dtype).values())


def _write(
    writer: CheckpointWriter, tensors: dict[str, Tensor], step: Step, inputs: Sequence[OpenedModel]
) -> dict[str, str]:
    try:
        return writer.write(tensors)
    except BadInputError:
        for opened in inputs:  # says more, if the fault is theirs
            opened.check_finite(step.names)
        raise


def identity(model: OpenedModel) -> list[list[Any]]:
    """What changes when a file of a checkpoint does."""
    return [[str(file), *state] for file, state in model.checkpoint.states.items()]


def _about(options: OutputOptions) -> dict[str, Any]:
    return {
        "layout": options.layout,
        "dtype": _name(options.dtype) if options.dtype else None,
        "versions": versions(),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _progress(steps: Sequence[Step], done: Container[str]) -> tqdm:
    total, behind = (sum(step.nbytes for step in some) for some in (steps, [s for s in steps if s.name in done]))
    return tqdm(total=total, initial=behind, desc="writing", unit="B", unit_scale=True, unit_divisor=1000)


def _copy_companions(source: Path, target: Path, options: OutputOptions) -> None:
    for file in {file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()}:
        content = file.read_bytes()
        if file.name == "config.json" and options.dtype:
            content = _as_json(_with_dtype(json.loads(content), options.dtype))
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config.json, and the configurations of parts in it, of a model in another dtype."""
    known = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return known | {key: _name(dtype) for key in ("dtype", "torch_dtype") if key in config}


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / MANIFEST_NAME).write_bytes(_as_json(content))


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
