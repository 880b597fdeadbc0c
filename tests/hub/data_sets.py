"""Files of data set repositories as the Hub has them: parquet per split, and a card that lists configs and features."""

import io
from collections.abc import Mapping

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture


def data_set(**configs: Mapping[str, Dataset]) -> dict[str, bytes]:
    """name -> content of a repository; `configs`: name -> split -> rows."""
    files, listed = {}, []
    for config, splits in configs.items():
        patterns = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        listed.append({"config_name": config, "data_files": patterns})
        for split, rows in splits.items():
            rows.to_parquet(file := io.BytesIO())
            files[f"{config}/{split}-00000-of-00001.parquet"] = file.getvalue()
    return files | {"README.md": f"---\n{yaml.safe_dump({'configs': listed})}---\n# Rows\n".encode()}


def texts(*rows: str) -> Dataset:
    """As in Salesforce/wikitext."""
    return Dataset.from_dict({"text": list(rows)}, features=Features({"text": Value("string")}))


def images(number: int, seed: int, image: str = "img", **labels: int) -> Dataset:
    """Colour images of 32 x 32 as in uoft-cs/cifar10 and uoft-cs/cifar100; `labels`: column -> number of classes."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    drawn = {name: generator.permutation(number) % classes for name, classes in labels.items()}
    features = {name: ClassLabel(num_classes=classes) for name, classes in labels.items()}
    rows = {image: [Picture.fromarray(one) for one in pixels], **drawn}
    return Dataset.from_dict(rows, features=Features({image: Image(), **features}))
