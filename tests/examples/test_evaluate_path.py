import json

import evaluate_path


def test_it_runs_at_a_tiny_size(tiny_text, tmp_path, capsys):
    sizes = ["--hidden_size", "16", "--max_steps", "12", "--points", "3", "--max_eval_samples", "48"]
    evaluate_path.main([*tiny_text, *sizes, "--output_dir", str(tmp_path)])
    assert "| aligned + norms |" in capsys.readouterr().out.replace("**", "").replace(" (chosen)", "")
    found = json.loads((tmp_path / "report/report.json").read_text())
    assert found["examples"] == 32
    assert found["predictions"] == 32 * 15
    assert set(found["paths"]) > {"naive", "naive + norms", "random", "units", "aligned"}
