"""A merge made by this package in the tools of others: an input of mergekit, a model of lm-evaluation-harness.

python -m benchmarks.interoperability --mergekit MK/bin/mergekit-yaml [--lm-eval EV/bin/lm_eval]

Both live in environments of their own (`python -m venv MK && MK/bin/pip install mergekit==0.1.5`; `lm_eval`).
Two small Mixtrals are merged at t = 1/2, and the merge is used, offline:

- mergekit averages it with its first parent; the result must be the average, tensor by tensor, and must generate.
- lm-evaluation-harness scores it on paragraphs of the manual that ships with Python; the bits per byte must be those
  of a plain forward pass.
- mergekit merges two fine-tunes of one base by a plain average, TIES, DARE and SLERP, one of them in another order: as
  it is, and after `align` to the base and `apply`, which must give what the fine-tune that was never reordered gives,
  bit for bit.

Writes what was found, with versions, as Markdown to standard output; fails where anything differs. How a merge does
in `transformers.pipeline` and under PEFT is tested in tests/test_interoperability.py.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from hf_moe_lmc import MoeAligner, apply, scramble
from hf_moe_lmc.alignment import open_model

BASE_STEPS, STEPS = 300, 100
OTHERS = ("scrambled", "applied", "b")
RUN_ALL = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
for output, recipe in json.load(open(sys.argv[1])).items():
    run_merge(MergeConfiguration(**recipe), output, MergeOptions(random_seed=0, write_model_card=False))
"""
METHODS = {  # of mergekit -> the parameters of each model
    "linear": {"each": {"weight": 0.5}},
    "ties": {"each": {"weight": 0.5, "density": 0.5}},
    "dare_ties": {"each": {"weight": 0.5, "density": 0.5}},
    "slerp": {"each": {}},
}

TOLERANCE = 1e-5  # relative, of sums over some thousand tokens in float32
TASK = """task: paragraphs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


def paragraphs() -> list[str]:
    """Some English."""
    parts = (part.strip() for name in sorted(topics) for part in topics[name].split("\n\n"))
    return [part for part in parts if 80 < len(part) < 400][:100]


def new_model(scale: float) -> tuple[MixtralForCausalLM, PreTrainedTokenizerFast]:
    """A small Mixtral with weights of this standard deviation, and its tokenizer."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(paragraphs(), vocab_size=500, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<end>", eos_token="<end>")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=5,
        max_position_embeddings=512,
        initializer_range=scale,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return MixtralForCausalLM(config), tokenizer


def write_parents(folder: Path) -> None:
    """Write `folder`/a and `folder`/b: siblings with weights of order 1, the second scrambled and with noise."""
    model, tokenizer = new_model(0.3)
    model.save_pretrained(folder / "a")
    scramble(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder / "b")
    for name in ("a", "b"):
        tokenizer.save_pretrained(folder / name)


def write_fine_tunes(folder: Path) -> None:
    """Write `folder`/base, /a and /b, trained on all paragraphs, then on one half each, and /scrambled: b reordered."""
    model, tokenizer = new_model(0.05)
    halves = paragraphs()[::2], paragraphs()[1::2]
    for name, texts, steps in (("base", paragraphs(), BASE_STEPS), ("a", halves[0], STEPS), ("b", halves[1], STEPS)):
        if name != "base":
            model = MixtralForCausalLM.from_pretrained(folder / "base")
        train(model, tokenizer, texts, steps)
        model.save_pretrained(folder / name)
    scramble(model)[0].save_pretrained(folder / "scrambled")
    for name in ("base", "a", "b", "scrambled"):
        tokenizer.save_pretrained(folder / name)


def train(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], steps: int) -> None:
    """Train on windows of the texts, in one fixed order."""
    tokens = torch.tensor(
        [token for text in texts for token in [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]]
    )
    optimiser, generator = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 64, (8, 1), generator=generator)
        batch = tokens[starts + torch.arange(64)]
        model(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def merged_on_a_base(mergekit: Path, work: Path) -> str:
    """Bits per byte of mergekit's merges on a base, in Markdown.

    Raises:
        AssertionError: a merge with the aligned fine-tune is not that with the one that was never reordered.
    """
    write_fine_tunes(work)
    alignment = MoeAligner.from_pretrained(work / "base", work / "scrambled").align()
    apply(alignment, work / "scrambled", work / "applied")
    recipes = {}
    for method, settings in METHODS.items():
        for other in OTHERS:
            models = [{"model": str(work / name), "parameters": settings["each"]} for name in ("a", other)]
            recipe = {"merge_method": method, "models": models, "dtype": "float32"}
            if method == "slerp":
                recipe |= {"base_model": str(work / "a"), "parameters": {"t": 0.5}}
            elif method != "linear":
                recipe |= {"base_model": str(work / "base")}
            recipes[str(work / f"{method}-{other}")] = recipe
    (work / "recipes.json").write_text(json.dumps(recipes))
    run(mergekit.with_name("python"), "-c", RUN_ALL, work / "recipes.json")
    rows = ["| bits per byte | b reordered | after align and apply | b never reordered |", "| --- | --- | --- | --- |"]
    for method in METHODS:
        applied, never = (open_model(work / f"{method}-{other}").tensors for other in ("applied", "b"))
        assert all(torch.equal(tensor, never[name]) for name, tensor in applied.items()), method
        cells = [f"{bits_per_byte(work / f'{method}-{other}'):.3f}" for other in OTHERS]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    alone = ", ".join(f"{name} {bits_per_byte(work / name):.3f}" for name in ("base", "a", "b"))
    return "\n".join([*rows, "", f"Alone: {alone}. Two fine-tunes of one base, of {STEPS} steps each."])


def run(*command: str | Path) -> None:
    """Run a tool of another environment, offline."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment | offline, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")


def tool_versions(script: Path, *packages: str) -> str:
    """Versions of packages in the environment of `script`."""
    code = f"from importlib.metadata import version; print(', '.join(f'{{p}} {{version(p)}}' for p in {packages}))"
    done = subprocess.run([script.with_name("python"), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def averaged_by_mergekit(mergekit: Path, merge: Path, parent: Path, work: Path) -> str:
    """What came of averaging `merge` and `parent` with mergekit.

    Raises:
        AssertionError: it is not the average, or cannot generate.
    """
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (merge, parent)]
    (work / "linear.yml").write_text(json.dumps({"models": models, "merge_method": "linear", "dtype": "float32"}))
    run(mergekit, work / "linear.yml", work / "averaged", "--no-write-model-card")
    averaged, first, second = (open_model(folder).tensors for folder in (work / "averaged", merge, parent))
    assert averaged.keys() == first.keys()
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    model, tokenizer = (auto.from_pretrained(work / "averaged") for auto in (AutoModelForCausalLM, AutoTokenizer))
    generated = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=8, min_new_tokens=8)
    assert generated.shape == (1, 9)
    return f"{len(averaged)} of {len(averaged)} tensors are the average of merge and parent; loads and generates"


@torch.no_grad()
def bits_per_byte(folder: Path) -> float:
    """Of all paragraphs, each after the token that ends texts: sum of -log2 p over tokens, per byte."""
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    bits = 0.0
    for text in paragraphs():
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        scores = model(tokens).logits[0, :-1].double().log_softmax(-1)
        bits -= scores.gather(1, tokens[0, 1:, None]).sum().item() / math.log(2)
    return bits / sum(len(text.encode()) for text in paragraphs())


def scored_by_lm_eval(lm_eval: Path, merge: Path, work: Path) -> str:
    """What lm-evaluation-harness says of `merge`.

    Raises:
        AssertionError: not what a plain forward pass says.
    """
    (work / "task").mkdir()
    (work / "paragraphs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs()))
    (work / "task" / "paragraphs.yaml").write_text(TASK.format(file=work / "paragraphs.jsonl"))
    arguments = ["--model", "hf", "--model_args", f"pretrained={merge},dtype=float32", "--device", "cpu"]
    run(lm_eval, *arguments, "--tasks", "paragraphs", "--include_path", work / "task", "--output_path", work / "scores")
    (file,) = (work / "scores").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["paragraphs"]["bits_per_byte,none"]
    expected = bits_per_byte(merge)
    assert math.isclose(found, expected, rel_tol=TOLERANCE), (found, expected)
    return f"{found:.6f} bits per byte on {len(paragraphs())} paragraphs; a plain forward pass gives {expected:.6f}"


def main() -> None:
    """Merge, use the merge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml in its environment")
    parser.add_argument("--lm-eval", type=Path, help="lm_eval in its environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_parents(work)
        MoeAligner.from_pretrained(work / "a", work / "b").merge(t=0.5, force=True, output=work / "merged")
        rows = {
            tool_versions(options.mergekit, "mergekit", "transformers", "torch"): averaged_by_mergekit(
                options.mergekit, work / "merged", work / "a", work
            )
        }
        if options.lm_eval:
            tool = tool_versions(options.lm_eval, "lm_eval", "transformers", "torch")
            rows[tool] = scored_by_lm_eval(options.lm_eval, work / "merged", work)
        (work / "tuned").mkdir()
        on_a_base = merged_on_a_base(options.mergekit, work / "tuned")
    here = ", ".join(f"{name} {version(name)}" for name in ("hf_moe_lmc", "transformers", "torch"))
    sys.stdout.write(f"A merge made with {here}, in other tools (`python -m benchmarks.interoperability`):\n\n")
    sys.stdout.write("| tool | found |\n| --- | --- |\n")
    sys.stdout.write("".join(f"| {tool} | {found} |\n" for tool, found in rows.items()))
    sys.stdout.write(f"\nmergekit's merges on a base:\n\n{on_a_base}\n")


if __name__ == "__main__":
    main()
