"""Runs `walkthrough.py` cell by cell and writes `walkthrough.md`: its text, its code, what it printed, its pictures.

    python examples/render_walkthrough.py

A cell starts at a line `# %%`, a cell of text at `# %% [markdown]`, as in the notebooks of editors and of Jupytext.
"""

import io
import os
import platform
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers")


def cells(source: str) -> list[tuple[bool, str]]:
    """(whether it is text, content) of every cell."""
    found = []
    for part in source.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        is_text = head.strip() == "[markdown]"
        if is_text:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
        found.append((is_text, body.strip()))
    return found


def rendered(source: str) -> str:
    """Markdown of `source`; its code runs in the current folder."""
    started, names, parts = time.perf_counter(), {"__name__": "walkthrough"}, []
    for is_text, content in cells(source):
        if is_text:
            parts.append(content)
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(content, "walkthrough.py", "exec"), names)
        parts.append(f"```python\n{content}\n```")
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    parts.append(
        f"*Made by `python examples/render_walkthrough.py` in {time.perf_counter() - started:.0f} s on a CPU of "
        f"{os.cpu_count()} cores; Python {platform.python_version()}, {versions}.*"
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run in a folder that is removed, and keep the page and its picture."""
    source = (HERE / "walkthrough.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            page = rendered(source)
        finally:
            os.chdir(before)
        (HERE / "walkthrough").mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "walkthrough-run/path/curves.png", HERE / "walkthrough" / "curves.png")
    (HERE / "walkthrough.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
