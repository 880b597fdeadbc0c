"""The page is what the script says; the script runs."""

import render_walkthrough

from tests.examples.conftest import EXAMPLES

TINY = '["--max_train_samples", "64", "--max_eval_samples", "16", "--max_steps", "1"]'


def test_the_page_is_made_of_the_cells_of_the_script():
    page = (EXAMPLES / "walkthrough.md").read_text("utf-8")
    found = render_walkthrough.cells((EXAMPLES / "walkthrough.py").read_text("utf-8"))
    assert len(found) > 10
    for is_text, content in found:
        assert (content if is_text else f"```python\n{content}\n```") in page
    assert (EXAMPLES / "walkthrough/curves.png").exists()


def test_the_script_runs_at_a_tiny_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (EXAMPLES / "walkthrough.py").read_text("utf-8")
    assert "quick = []" in source
    source = (
        source.replace("quick = []", f"quick = {TINY}")
        .replace("points=11", "points=3")
        .replace("range(500)", "range(8)")
    )
    page = render_walkthrough.rendered(
        source.replace("range(256)", "range(4)").replace("batch_size=128", "batch_size=2")
    )
    assert "equal up to rounding: True" in page
    assert "naive + rescale    loss barrier" in page
    assert (tmp_path / "walkthrough-run/merged/model.safetensors").exists()


def test_text_and_code_are_told_apart():
    source = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\na = 6 * 7\nprint(a)\n"
    assert render_walkthrough.cells(source) == [(True, "# Title\n\ntext"), (False, "a = 6 * 7\nprint(a)")]
    assert render_walkthrough.rendered(source).startswith(
        "# Title\n\ntext\n\n```python\na = 6 * 7\nprint(a)\n```\n\n```text\n42\n```\n"
    )
