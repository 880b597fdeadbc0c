"""Checkpoints rewritten step by step into new folders."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from hf_moe_lmc.checkpoints import (
    COMPANIONS,
    MANIFEST_NAME,
    Checkpoint,
    CheckpointWriter,
    Layout,
    StagedFolder,
    output_folder,
    place,
)

from .opened_model import OpenedModel
from .steps import Step, cut_steps

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


@dataclass(frozen=True)
class Output:
    """A checkpoint to be written.

    Args:
        folder: where.
        recipe: what is done to which weights, in JSON values; part of the manifest.
    """

    folder: Path
    recipe: Mapping[str, Any]


def write_checkpoints(
    model: OpenedModel,
    outputs: Sequence[Output],
    compute: Compute,
    others: Sequence[OpenedModel],
    options: OutputOptions,
) -> None:
    """Write checkpoints like that of `model`, all in one pass over its tensors; memory holds one step of it at a time.

    Each appears complete or not at all. Killed and called again with the same arguments, it goes on where it was.

    Args:
        model: gives keys, shapes, tokenizer and other small files.
        outputs: what is written.
        compute: the new tensors of a step under module names.
        others: further checkpoints that `compute` reads.
        options: how they are written.

    Raises:
        OutputError: an output folder may not be written.
        BadInputError: a result is NaN, infinite, or too large for its dtype.
    """
    checkpoints = [opened.checkpoint for opened in (model, *others)]
    folders = [checkpoint.folder for checkpoint in checkpoints]
    identity = {"inputs": [_identity(checkpoint) for checkpoint in checkpoints], "options": _as_json(options)}
    size = sum(tensor.nbytes for tensor in place(checkpoints[0], Path(), options.layout, options.dtype).values())
    with ExitStack() as stack:
        staged = [
            stack.enter_context(
                output_folder(
                    output.folder, identity | _versions() | dict(output.recipe), folders, size, options.overwrite
                )
            )
            for output in outputs
        ]
        writers = [
            CheckpointWriter(s, place(checkpoints[0], s.path, options.layout, options.dtype), checkpoints[0].model)
            for s in staged
        ]
        groups = [group.names for owner in (*checkpoints, *writers) for group in owner.groups]
        steps = cut_steps(model.sizes, model.layers, groups)
        for step in _with_progress(steps):
            if all(step.name in s.done for s in staged):
                continue
            for s, writer, tensors in zip(staged, writers, compute(step), strict=True):
                if step.name not in s.done:
                    writer.write(step.name, tensors)
        for s, writer, output in zip(staged, writers, outputs, strict=True):
            _finish(s, writer, output, checkpoints[0].folder, options)


def _identity(checkpoint: Checkpoint) -> list[list[Any]]:
    """What changes when a file of the checkpoint does."""
    files = sorted({tensor.file for tensor in checkpoint.stored.values()} | {checkpoint.folder / "config.json"})
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _as_json(options: OutputOptions) -> dict[str, Any]:
    return {"layout": options.layout, "dtype": str(options.dtype) if options.dtype else None}


def _versions() -> dict[str, Any]:
    return {"versions": {package: version(package) for package in ("hf_moe_lmc", "torch", "transformers")}}


def _with_progress(steps: Sequence[Step]) -> Iterator[Step]:
    total = sum(step.nbytes for step in steps)
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, unit_divisor=1000) as bar:
        for step in steps:
            yield step
            bar.update(step.nbytes)


def _finish(
    staged: StagedFolder, writer: CheckpointWriter, output: Output, model_folder: Path, options: OutputOptions
) -> None:
    for pattern in COMPANIONS:
        for file in model_folder.glob(pattern):
            content = file.read_bytes()
            if file.name == "config.json" and options.dtype:
                config = json.loads(content)
                config.pop("torch_dtype", None)
                config["dtype"] = str(options.dtype).removeprefix("torch.")
                content = json.dumps(config, indent=2).encode() + b"\n"
            staged.write_file(str(file.relative_to(model_folder)), content)
    manifest = dict(output.recipe) | _versions() | {"sha256": writer.finish()}
    staged.write_file(MANIFEST_NAME, json.dumps(manifest, indent=2).encode() + b"\n")
