import json
import sys

from benchmarks import gpu


def test_small_on_the_cpu(monkeypatch, tmp_path):
    """The CPU beside itself: equal alignments and figures; a card that finds another alignment is told."""
    command = ["gpu", "--device", "cpu", "--small", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert gpu.main() == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["alignment"] for row in rows] == ["equal", "equal"]
    assert all(row["gram"] == row["null"] == 0 for row in rows)
    assert all(row[name] > 0 for row in rows for name in ("GPU s", "CPU s", "rate", "path"))
    assert "| Qwen3-30B-A3B | 3 | 48 | 32 | siblings | small |" in (tmp_path / "gpu.md").read_text()

    align_layers, calls = gpu.align_layers, []

    def wrong_at_first(reference, other):
        calls.append(other)
        return align_layers(reference, other, "none" if len(calls) == 1 else "auto")

    monkeypatch.setattr(gpu, "align_layers", wrong_at_first)
    assert gpu.main() == 1
