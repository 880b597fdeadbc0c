"""CIFAR-10, and a ViT trained on it from scratch on one thread: the backbone that all copies start from.

    python -m benchmarks.paper.cifar [FOLDER_OR_HUB_ID] [--device cuda]

12 layers, patch 4, hidden size 64. Most epochs see crops of 24 pixels, whose 37 tokens take 0.6 of the time of the 65
tokens of whole images. A killed run goes on after its last whole epoch.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification, get_cosine_schedule_with_warmup, set_seed

from hf_moe_lmc.connectivity.data import load_rows

FOLDER = Path("runs/paper/cifar")  # of the backbone
HUB_ID, CLASSES = "uoft-cs/cifar10", 10
SMALL_EPOCHS, EPOCHS, BATCH, SMALL_CROP, IMAGE = 10, 14, 128, 24, 32
SIZES = {
    "image_size": IMAGE,
    "patch_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "num_labels": CLASSES,
    "initializer_range": 64**-0.5,
}
MUON = {"lr": 6e-3, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}  # of the matrices in the layers
ADAMW = {"lr": 2e-3, "weight_decay": 0.05, "betas": (0.9, 0.98)}  # of all else


class Images(Dataset[dict[str, Tensor]]):
    """An item is `{"pixel_values": [3, 32, 32], "labels": class}`; images and labels as of `load_images`."""

    def __init__(self, images: Tensor, labels: Tensor):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": pixels(self._images[index]), "labels": self._labels[index]}


def load_images(source: str, split: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 32, 32]`, uint8, and labels `[N]`; `source` is the Hub's id, or a folder of its parquet files."""
    (file,) = sorted(Path(source).glob(f"{split}-*.parquet")) or [source]
    rows = load_rows(file, split=split)
    images = np.stack([np.asarray(image.convert("RGB")) for image in rows["img"]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows["label"][:])


def pixels(images: Tensor) -> Tensor:
    """As the image processor of ViT has them: from -1 to 1."""
    return images.float() / 127.5 - 1


def augmented(images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """Each image flipped or not, and a random crop of it; whole images are first padded by 4 pixels, with zeros."""
    images = pixels(images)
    images = F.pad(images, (4, 4, 4, 4)) if crop == IMAGE else images
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    top, left = torch.randint(images.shape[-1] - crop + 1, (2, len(images)), generator=generator)
    rows = (top[:, None] + torch.arange(crop))[:, None, :, None]
    columns = (left[:, None] + torch.arange(crop))[:, None, None, :]
    return images[torch.arange(len(images))[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def pretrained() -> tuple[ViTForImageClassification, float]:
    """The backbone in `FOLDER`, and the CPU seconds of its training."""
    if not (FOLDER / "record.json").exists():
        raise FileNotFoundError(f"{FOLDER} holds no backbone; run python -m benchmarks.paper.cifar")
    record = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    return ViTForImageClassification.from_pretrained(FOLDER).eval(), record["cpu_seconds"]


def pretrain(source: str, device: str = "cpu") -> None:
    """Train the backbone into `FOLDER`."""
    images, labels = load_images(source, "train")
    set_seed(0)
    model = ViTForImageClassification(ViTConfig(**SIZES)).to(device).train()
    matrices = [p for p in model.vit.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    optimizers = [torch.optim.Muon(matrices, **MUON), torch.optim.AdamW(rest, **ADAMW)]
    steps = len(images) // BATCH
    schedules = [get_cosine_schedule_with_warmup(o, steps // 2, EPOCHS * steps) for o in optimizers]
    first, seconds, checkpoint = 0, 0.0, FOLDER / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        first, seconds = state["epochs"], state["cpu_seconds"]
        model.load_state_dict(state["model"])
        for part, saved in zip([*optimizers, *schedules], state["parts"], strict=True):
            part.load_state_dict(saved)
    for epoch in range(first, EPOCHS):
        started, total = time.process_time(), 0.0
        generator = torch.Generator().manual_seed(epoch)
        crop = SMALL_CROP if epoch < SMALL_EPOCHS else IMAGE
        for batch in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
            inputs = augmented(images[batch], crop, generator).to(device)
            logits = model(inputs, interpolate_pos_encoding=crop != IMAGE).logits
            loss = F.cross_entropy(logits, labels[batch].to(device), label_smoothing=0.1)
            loss.backward()
            for part in (*optimizers, *schedules):
                part.step()
            model.zero_grad()
            total += loss.item()
        seconds += time.process_time() - started
        state = {"epochs": epoch + 1, "cpu_seconds": seconds, "model": model.state_dict()}
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"parts": [part.state_dict() for part in (*optimizers, *schedules)]}, checkpoint)
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {seconds:.0f} CPU s", flush=True)  # noqa: T201
    model.eval()
    accuracy = test_accuracy(model, source)
    model.save_pretrained(FOLDER)
    record = {"test_accuracy": accuracy, "epochs": EPOCHS, "cpu_seconds": round(seconds, 1)}
    (FOLDER / "record.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(record)  # noqa: T201


@torch.no_grad()
def test_accuracy(model: ViTForImageClassification, source: str) -> float:
    """Accuracy on all test images."""
    images, labels = load_images(source, "test")
    logits = torch.cat([model(pixels(some).to(model.device)).logits.cpu() for some in images.split(500)])
    return float((logits.argmax(1) == labels).float().mean())


def main() -> None:
    """Train the backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=HUB_ID, help="a folder of its parquet files, or the Hub's id")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pretrain(options.data, device=options.device)


if __name__ == "__main__":
    main()
