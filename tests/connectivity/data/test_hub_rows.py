"""Rows out of repositories on a Hub: real HTTP, the real `datasets`."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_moe_lmc.connectivity.data import load_rows
from hf_moe_lmc.errors import BadInputError, HubError
from tests.hub.data_sets import data_set, images, texts
from tests.hub.server import Failure, Repository

pytestmark = pytest.mark.usefixtures("data_hub")


@pytest.fixture
def corpus(data_hub) -> Repository:
    """Two configs; its second commit changed the test split of the first."""
    files = data_set(small={"train": texts("a", "b"), "test": texts("old", "")}, large={"test": texts("c")})
    changed = data_set(small={"test": texts("new")})["small/test-00000-of-00001.parquet"]
    repository = Repository(commits=[files, {"small/test-00000-of-00001.parquet": changed}])
    data_hub.repositories["datasets/org/corpus"] = repository
    return repository


def test_configs_splits_and_revisions(corpus):
    first, last = corpus.shas
    assert load_rows("org/corpus", "small", "train")["text"][:] == ["a", "b"]
    assert load_rows("org/corpus", "small")["text"][:] == ["new"]
    assert load_rows("org/corpus", "small", revision=last)["text"][:] == ["new"]
    assert load_rows("org/corpus", "small", revision=first)["text"][:] == ["old", ""]
    assert load_rows("org/corpus", "large", revision=first)["text"][:] == ["c"]


def test_a_folder_of_images(data_hub):
    files = {}
    for split, shade in (("train", 0), ("test", 200)):
        for name in ("dog", "cat"):
            Image.fromarray(np.full((6, 5), shade, np.uint8)).save(file := io.BytesIO(), "PNG")
            files[f"{split}/{name}/0.png"] = file.getvalue()
    data_hub.repositories["datasets/org/pets"] = Repository(commits=[files])
    rows = load_rows("org/pets")
    assert sorted(rows["label"]) == [0, 1]
    assert rows.features["label"].names == ["cat", "dog"]
    assert {np.asarray(image).max() for image in rows["image"]} == {200}


def test_pixels_and_classes_arrive_as_they_were(data_hub):
    planted = images(7, seed=3, label=10)
    data_hub.repositories["datasets/org/cifar"] = Repository(commits=[data_set(plain_text={"test": planted})])
    found = load_rows("org/cifar")
    assert found["label"][:] == planted["label"][:]
    assert found.features["label"].num_classes == 10
    for image, expected in zip(found["img"], planted["img"], strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"Config name is missing\. Please pick one among the available configs: \['small', 'large'\]$"),
        ({"config": "medium"}, r"'medium' not found\. Available: \['small', 'large'\]"),
        ({"config": "small", "split": "val"}, r"Unknown split \"val\"\. Should be one of \['train', 'test'\]"),
    ],
)
def test_what_there_is_instead(asked, said, corpus):
    with pytest.raises(BadInputError, match=rf"dataset org/corpus \(.*\) cannot be read: .*{said}"):
        load_rows("org/corpus", **asked)


@pytest.mark.parametrize("source", ["absent/folder/text.txt", "a file.txt", "/absent.txt", "nofile.txt"])
def test_what_cannot_be_on_a_hub(source, data_hub):
    with pytest.raises(BadInputError, match=f"'{source}' is neither a file, a folder nor the id of a dataset"):
        load_rows(source)
    assert not data_hub.requests


def test_a_revision_that_is_not_there(corpus):
    with pytest.raises(HubError, match="dataset org/corpus has no revision v7"):
        load_rows("org/corpus", "small", revision="v7")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": b"---\nconfigs: [\n---\n", "a.txt": b"a"}, "expected the node content"),
        ({"test.parquet": b"<html>"}, "Parquet file size is 6 bytes"),
        ({"test.txt": b"\xff\xfe"}, "'utf-8' codec can't decode"),
        ({"weights.bin": b"0"}, "No \\(supported\\) data files found"),
    ],
)
def test_a_repository_of_something_else(files, said, data_hub):
    data_hub.repositories["datasets/org/other"] = Repository(commits=[files])
    with pytest.raises(BadInputError, match=rf"dataset org/other \(split test\) cannot be read: .*{said}"):
        load_rows("org/other")


def test_private_ones_need_a_token(corpus, monkeypatch):
    corpus.private = True
    assert len(load_rows("org/corpus", "large")) == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"org/corpus.*log in"):
        load_rows("org/corpus", "large")  # not what the cache holds


def test_gated_ones_need_a_permission(corpus):
    corpus.gated = True
    with pytest.raises(HubError, match=r"'org/corpus' is a gated dataset on the Hub\..* to ask for access"):
        load_rows("org/corpus", "large")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("part", ["/api/datasets/", "large/test"])
def test_a_hub_that_refuses(status, part, corpus, data_hub):
    data_hub.failures.append(Failure(part, status))
    with pytest.raises(HubError, match="dataset org/corpus"):
        load_rows("org/corpus", "large")


def test_a_connection_that_breaks(corpus, data_hub):
    """Once, and it goes on; again and again, and it says so."""
    data_hub.failures.append(Failure("large/test", body=None, cut=5, times=2))  # HEAD and GET
    assert load_rows("org/corpus", "large")["text"][:] == ["c"]
    data_hub.failures.append(Failure("small/test", body=None, cut=5))
    with pytest.raises(HubError, match=r"connection to the Hub failed for dataset org/corpus@main .*; try again later"):
        load_rows("org/corpus", "small")


def test_a_failing_hub_is_not_replaced_by_another_commit(corpus, data_hub):
    first, last = corpus.shas
    load_rows("org/corpus", "small", revision=first)
    data_hub.failures.append(Failure(f"/resolve/{last}", 500))
    with pytest.raises(HubError, match=f"connection to the Hub failed .*the cache holds commit {first} instead"):
        load_rows("org/corpus", "small")


def test_without_the_network(corpus, data_hub, monkeypatch):
    first, last = corpus.shas
    load_rows("org/corpus", "small", revision=first)
    asked = len(data_hub.requests)
    for library in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)
    for revision in (None, first):
        assert load_rows("org/corpus", "small", revision=revision)["text"][:] == ["old", ""]
    with pytest.raises(HubError, match=f"dataset org/corpus@{last} is not in the cache, and the network may not be"):
        load_rows("org/corpus", "small", revision=last)
    assert len(data_hub.requests) == asked
