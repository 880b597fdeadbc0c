"""The app's functions on its own pair; gradio, which draws the page, is no dependency of the tests."""

import sys

import pytest

from hf_moe_lmc.errors import BadInputError
from tests.examples.conftest import EXAMPLES


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "space")
    import app

    yield app
    sys.modules.pop("app")


def test_the_example_pair_is_told_and_drawn(app, tmp_path):
    """Which was scrambled: experts in another order; and both plots are pictures."""
    a, b = app.example_pair(tmp_path)
    text, plot = app.compared(a, f" {b} ")
    assert "experts in another order in 2 of 2 layers" in text
    verdict, distances = app.aligned(a, b)
    assert "2 of 2 layers permuted" in verdict
    for file in (plot, distances):
        with open(file, "rb") as picture:
            assert picture.read(4) == b"\x89PNG"


def test_a_wrong_path_is_an_error_of_ours(app, tmp_path):
    with pytest.raises(BadInputError, match="absent"):
        app.compared(str(tmp_path / "absent"), str(tmp_path / "absent"))
