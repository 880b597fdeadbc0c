import io
from itertools import chain, repeat

import pytest

from hf_moe_lmc import progress


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def shown(monkeypatch):
    def run(terminal: bool, pause: float) -> str:
        stream = Stream(terminal)
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(progress, "PAUSE", pause)
        monkeypatch.setattr(progress._Lines, "written", 0.0 if pause == 0 else float("inf"))
        for _ in progress.Progress(range(5), desc="aligning", unit="layers"):
            pass
        return stream.getvalue()

    return run


def test_a_bar_on_a_terminal(shown):
    assert "\r" in shown(terminal=True, pause=30)


def test_lines_in_a_log_file(shown):
    lines = shown(terminal=False, pause=0).splitlines()
    assert lines[-1].startswith("aligning: 100%, 5 of 5 layers, ")
    assert not any("\r" in line for line in lines)


def test_one_line_in_a_pause(monkeypatch):
    """However often, and by whomever, bars are redrawn: tqdm's monitor does so, too."""
    stream, now = Stream(False), chain([0, 29, 30, 30, 31, 59.9], repeat(61))
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress._Lines, "written", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    for text in "abcdef":
        progress._Lines().write(f"\r{text}")
    assert stream.getvalue() == "c\nf\n"


def test_nothing_of_a_short_run_in_a_log_file(shown):
    assert shown(terminal=False, pause=30) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (100, "100 s"), (125, "2.1 min"), (8000, "2.2 h"), (180_000, "2.1 days")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
