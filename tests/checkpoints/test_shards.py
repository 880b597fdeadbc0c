"""Faults of the files that hold the tensors."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch

from tests.checkpoints.faulty import edit_index, shards

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>" * 20


def written(content: bytes):
    return lambda file: file.write_bytes(content)


def replaced_by(make):
    """Remove the file and put something else there."""

    def fault(file):
        file.unlink()
        make(file)

    return fault


SHARDS = {
    "missing": (lambda file: file.unlink(), []),
    "empty": (written(b""), ["cut off at 0 bytes"]),
    "truncated": (lambda file: os.truncate(file, file.stat().st_size - 1), ["but its header describes"]),
    "trailing bytes": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), ["but its header describes"]),
    "HTML": (written(HTML), ["an HTML page; download"]),
    "git-lfs pointer": (written(LFS), ["a git-lfs pointer; fetch"]),
    "pickle": (written(pickle.dumps({"weight": [1.0]})), ["a pickle, not safetensors; convert"]),
    "torch.save": (lambda file: torch.save({"weight": torch.ones(2)}, file), ["a pickle, not safetensors; convert"]),
    "zip": (lambda file: zipfile.ZipFile(file, "w").writestr("a", "b" * 100), ["not safetensors"]),
    "directory": (replaced_by(lambda file: file.mkdir()), []),
    "dangling link": (replaced_by(lambda file: file.symlink_to("absent")), []),
    "link to itself": (replaced_by(lambda file: file.symlink_to(file)), []),
    "pipe": (replaced_by(os.mkfifo), []),
}


@pytest.mark.parametrize("fault", SHARDS)
def test_faults(checkpoint, refused, fault):
    break_file, words = SHARDS[fault]
    file = shards(checkpoint)[-1]
    break_file(file)
    refused(checkpoint, file.name, *words)


def test_swapped(sharded, refused):
    first, second, _ = shards(sharded)
    content = first.read_bytes()
    second.rename(first)
    second.write_bytes(content)
    refused(sharded, first.name, "is not listed there by")


def test_a_folder_of_pickles(single, refused):
    shards(single)[0].rename(single / "pytorch_model.bin")
    refused(single, "pickles are never read: convert it first")


def test_an_adapter(single, refused):
    shards(single)[0].rename(single / "adapter_model.safetensors")
    (single / "adapter_config.json").write_text("{}")
    refused(single, "it is a PEFT adapter: merge it into its base model first")


def test_an_adapter_beside_full_weights(checkpoint, refused):
    """Transformers loads both, and computes something else than the weights alone."""
    (checkpoint / "adapter_config.json").write_text("{}")
    refused(checkpoint, "holds adapter_config.json beside full weights", "merge_and_unload")


OTHERS = {
    "Trainer": ("checkpoint-500/config.json", "it is the output of a Trainer", "checkpoint-500"),
    "DCP": ("__0_0.distcp", "it is a distributed checkpoint", "merge-weights"),
    "FSDP": ("pytorch_model_fsdp_0/__0_0.distcp", "it is a distributed checkpoint", "merge-weights"),
    "DeepSpeed": ("zero_to_fp32.py", "it is a DeepSpeed checkpoint", "zero_to_fp32.py"),
    "GGUF": ("model-q4.gguf", "it is GGUF", "gguf_file"),
    "other name": ("model-00001-of-00001.safetensors", "is the whole model must be called model.safetensors"),
    "pickles": ("pytorch_model.bin", "pickles are never read", "save_pretrained"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("configured", [False, True])
def test_what_a_folder_is_instead(tmp_path, saved, refused, other, configured):
    name, *words = OTHERS[other]
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("{}")
    if configured:
        shutil.copy(saved / "single" / "config.json", folder)
    refused(folder, *words)


def test_the_last_checkpoint_of_a_trainer_is_named(tmp_path, refused):
    for step in (1000, 500):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        file = tmp_path / "run" / f"checkpoint-{step}" / "config.json"
        file.write_text("{}")
        os.utime(file, (step, step))
    refused(tmp_path / "run", "such as ", "checkpoint-1000")


@pytest.mark.parametrize("inner", ["base", "snapshots/0a1b"])
def test_a_folder_of_models(tmp_path, refused, inner):
    """A repository of several, and one in a cache of the Hub."""
    (tmp_path / "folder" / inner).mkdir(parents=True)
    (tmp_path / "folder" / inner / "config.json").write_text("{}")
    refused(tmp_path / "folder", "config.json is missing", f"such as {tmp_path / 'folder' / inner}")


def test_an_adapter_without_a_model(single, refused):
    """As PEFT saves it: there is no config.json."""
    shards(single)[0].rename(single / "adapter_model.safetensors")
    (single / "config.json").rename(single / "adapter_config.json")
    refused(single, "it is a PEFT adapter: merge it into its base model first")


def test_a_folder_without_weights(single, refused):
    shards(single)[0].unlink()
    refused(single, "holds no model.safetensors")


def test_odd_names(sharded, accepted):
    for number, file in enumerate(shards(sharded)):
        new = f"ünsorted shard-{9 - number}.safetensors"
        file.rename(sharded / new)
        edit_index(lambda m, old=file.name, new=new: m.update({k: new for k, v in m.items() if v == old}))(sharded)
    accepted(sharded)


def test_the_links_of_a_cache(checkpoint, accepted):
    """As huggingface_hub keeps a snapshot."""
    blobs = checkpoint.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate([*checkpoint.iterdir()]):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), checkpoint))
    accepted(checkpoint)


def test_files_beside_the_checkpoint(sharded, accepted):
    (sharded / "consolidated.safetensors").write_bytes(b"another format of the same weights")
    (sharded / "training_args.bin").write_bytes(b"pickle")
    assert not (accepted(sharded) / "training_args.bin").exists()
