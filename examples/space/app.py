"""Compare and align two Mixture-of-Experts checkpoints in a browser; an app for a Space of the Hub.

    python examples/space/app.py

Only what a button asks for is run: nothing is downloaded, aligned or merged at the start. The example pair, two tiny
models with random weights, is made on the spot, so the app works without a network.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hf_moe_lmc import Alignment, align, compare, scramble
from hf_moe_lmc.alignment import plot_alignment
from hf_moe_lmc.comparison import plot_comparison

if TYPE_CHECKING:
    import gradio

INTRODUCTION = """# What became of every expert?

Two Mixture-of-Experts checkpoints: ids on the Hub (`org/model` or `org/model@revision`) or folders of this machine.
**Compare** reads both and says, expert by expert, what B is in terms of A. **Align** matches the experts and units of B
to those of A, and says whether merging the two needs that."""


def example_pair(folder: Path) -> tuple[str, str]:
    """Write two tiny siblings, the second in another order and with a little noise, and return their folders."""
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_local_experts": 8}
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**sizes, vocab_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    )
    model.save_pretrained(folder / "a")
    scramble(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.002)
    model.save_pretrained(folder / "b")
    return str(folder / "a"), str(folder / "b")


def compared(a: str, b: str) -> tuple[str, str]:
    """What became of every expert in sentences, and the file of its plot."""
    comparison = compare(a.strip(), b.strip())
    file = _new_file()
    plot_comparison(comparison, file)
    return _as_list(comparison.summary()), file


def aligned(a: str, b: str) -> tuple[str, str]:
    """The verdict and the distances in sentences, and the file of their plot."""
    alignment = align(a.strip(), b.strip())
    assert isinstance(alignment, Alignment)
    file, verdict = _new_file(), alignment.verdict()
    plot_alignment(alignment, file)
    return _as_list(f"{verdict.text() if verdict else ''}\n{alignment.summary()}"), file


def build() -> "gradio.Blocks":
    """The page; its only start-up work is to write the example pair."""
    import gradio

    from hf_moe_lmc.errors import MoeLmcError

    def shown(function):
        def run(a: str, b: str) -> tuple[str, str | None]:
            try:
                return function(a, b)
            except MoeLmcError as error:  # in the place of the last pair's result, which would seem to be of this one
                return f"**Error:** {error}", None

        return run

    a, b = example_pair(Path(tempfile.mkdtemp()))
    with gradio.Blocks(title="hf_moe_lmc") as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            boxes = [gradio.Textbox(a, label="A"), gradio.Textbox(b, label="B")]
        with gradio.Row():
            buttons = [gradio.Button("Compare", variant="primary"), gradio.Button("Align")]
        outputs = [gradio.Markdown(label="result"), gradio.Image(label="plot", show_label=False, buttons=[])]
        for button, function in zip(buttons, (compared, aligned), strict=True):
            button.click(shown(function), boxes, outputs, api_name=function.__name__)
    return page


def _as_list(text: str) -> str:
    return "\n".join(f"- {line}" for line in text.splitlines() if line)


def _new_file() -> str:
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        return file.name


if __name__ == "__main__":
    build().launch()
