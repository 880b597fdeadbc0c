import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_moe_lmc.connectivity.data import load_rows
from hf_moe_lmc.errors import BadInputError, HubError


@pytest.fixture(autouse=True)
def offline_in_its_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for library in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)


def test_a_text_file_is_one_document(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("first line\n\nlast line\n")
    assert load_rows(file)["text"][:] == ["first line\n\nlast line\n"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_tables(suffix, tmp_path):
    rows = [{"text": "a b", "label": 1}, {"text": "c", "label": 0}]
    file = tmp_path / f"table.{suffix}"
    match suffix:
        case "jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        case "json":
            file.write_text(json.dumps(rows))
        case "csv":
            file.write_text("text,label\na b,1\nc,0\n")
        case "parquet":
            Dataset.from_list(rows).to_parquet(file)
    assert load_rows(file).to_list() == rows


def test_a_folder_of_images_with_splits(tmp_path):
    for split, shade in (("train", 0), ("test", 200)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.full((6, 5), shade, np.uint8)).save(tmp_path / "images" / split / name / "0.png")
    rows = load_rows(tmp_path / "images", split="test")
    assert rows["label"][:] == [0, 1]
    assert {np.asarray(image).max() for image in rows["image"]} == {200}


def test_what_is_not_there(tmp_path):
    with pytest.raises(HubError, match=r"^dataset no/such-dataset@main is not in the cache, "):
        load_rows("no/such-dataset")
    with pytest.raises(HubError, match=r"^no 'mistyped' here, and dataset mistyped@main is not in the cache, "):
        load_rows("mistyped")
    with pytest.raises(BadInputError, match=r"^'mistyped.txt' is neither a file, a folder nor the id of a dataset"):
        load_rows("mistyped.txt")


def test_a_table_that_is_none(tmp_path):
    file = tmp_path / "table.parquet"
    file.write_bytes(b"<html>")
    with pytest.raises(BadInputError, match="cannot be read"):
        load_rows(file)


def test_a_folder_of_this_and_that(tmp_path):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.txt").write_text("a")
    (tmp_path / "mixed/b.csv").write_text("b")
    with pytest.raises(BadInputError, match=r"holds .csv, .txt; give files of one kind"):
        load_rows(tmp_path / "mixed")


def test_nothing_in_it(tmp_path):
    file = tmp_path / "empty.csv"
    file.write_text("text\n")
    with pytest.raises(BadInputError, match="no data"):
        load_rows(file)
