import json
import runpy
from pathlib import Path
from pydoc_data.topics import topics

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_path.py"


def test_it_runs_at_a_tiny_size(tmp_path, capsys):
    text = tmp_path / "manual.txt"
    text.write_text("\n".join(topics[name] for name in sorted(topics))[:30_000], "utf-8")
    sizes = ["--steps", "12", "--hidden-size", "16", "--vocabulary", "300", "--block", "16", "--points", "3"]
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(["--text", str(text), "--output", str(tmp_path / "out"), "--evaluate-blocks", "32", *sizes])
    assert "| aligned + norms |" in capsys.readouterr().out.replace("**", "").replace(" (chosen)", "")
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert found["examples"] == 32
    assert found["predictions"] == 32 * 15
    assert set(found["paths"]) > {"naive", "naive + rescale", "random", "units", "aligned"}
