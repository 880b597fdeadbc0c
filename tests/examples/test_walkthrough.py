"""The notebook runs, and was kept with its outputs."""

import json

from tests.examples.conftest import EXAMPLES

NOTEBOOK = json.loads((EXAMPLES / "walkthrough.ipynb").read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TINY = {
    "quick = []": 'quick = ["--max_train_samples", "64", "--max_eval_samples", "16", "--max_steps", "1"]',
    "points=11": "points=3",
    "range(500)": "range(8)",
    "range(256)": "range(4)",
    "batch_size=128": "batch_size=2",
    "merge(alignment": "merge(alignment, force=True",  # too little training for related experts
}


def test_it_was_kept_as_it_ran():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert "image/png" in CODE[-1]["outputs"][-1]["data"]
    assert (EXAMPLES / "walkthrough.ipynb").stat().st_size < 300_000


def test_it_runs_at_a_tiny_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = "\n".join("".join(cell["source"]) for cell in CODE)
    for full, tiny in TINY.items():
        assert full in source
        source = source.replace(full, tiny)
    exec(source, {"__name__": "walkthrough"})
    shown = capsys.readouterr().out
    assert "equal up to rounding: True" in shown
    assert "Loss barrier of the path: " in shown
    assert (tmp_path / "walkthrough-run/merged/model.safetensors").exists()
    assert (tmp_path / "walkthrough-run/path/curves.png").exists()
