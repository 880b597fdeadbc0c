"""Two published statistics of whether one model descends from another, written from their descriptions.

MATCH (arXiv:2502.12292): the units of an MLP are matched by gate_proj and again by up_proj; of unrelated models the two
orders are independent, so Spearman's test of their agreement gives a p-value, and Fisher's method joins those of all
layers. There on activations at random inputs, here on weights, which are what these tend to; the units of all experts
of a layer are one MLP, and without gate_proj the columns of down_proj take its place.

AWM (arXiv:2510.06738): hidden coordinates are matched, with signs, by the embeddings; then the query and key matrices
are compared by the unbiased CKA, which no rotation inside heads changes. The mean over all of them is the score.
"""

import math
import re

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.stats import combine_pvalues, spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import alignable_layers

_LEAST = 1e-300  # p-value
_QUERY_OR_KEY = re.compile(r"\.(q|k|q_proj|k_proj|q_a_proj|kv_a_proj_with_mqa)\.weight$")


@torch.no_grad()
def match(a: PreTrainedModel, b: PreTrainedModel) -> float:
    """-log10 of the p-value that no layer of b has units in an order of a's: large of related models."""
    tensors, values = [model.state_dict() for model in (a, b)], []
    for spec in alignable_layers(a):
        if spec.router is None:
            continue
        banks = [spec.read(side).experts for side in tensors]
        ups = [bank.up_proj.flatten(0, 1) for bank in banks]
        gates = [(bank.down_proj.mT if bank.gate_proj is None else bank.gate_proj).flatten(0, 1) for bank in banks]
        orders = [linear_sum_assignment(_cosines(x, y), maximize=True)[1] for x, y in (ups, gates)]
        values.append(spearmanr(*orders, alternative="greater").pvalue)
    return -math.log10(max(combine_pvalues([max(value, _LEAST) for value in values]).pvalue, _LEAST))


@torch.no_grad()
def awm(a: PreTrainedModel, b: PreTrainedModel) -> float:
    """The mean unbiased CKA of query and key matrices, hidden coordinates matched by the embeddings."""
    own, other = (model.get_input_embeddings().weight for model in (a, b))
    cosines = _cosines(own.T, other.T)
    columns = torch.from_numpy(linear_sum_assignment(cosines.abs(), maximize=True)[1])
    signs = cosines.gather(1, columns[:, None])[:, 0].sign()
    x, y = a.state_dict(), b.state_dict()
    names = [name for name in x if _QUERY_OR_KEY.search(name) and x[name].shape[1] == len(columns)]
    scores = [_unbiased_cka(x[name].T, (y[name][:, columns] * signs).T) for name in names]
    return sum(scores) / len(scores)


def _cosines(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    x, y = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (x, y))
    return x @ y.T


def _unbiased_cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """`HSIC(K, M) / (HSIC(K, K) HSIC(M, M))^(1/2)` of linear kernels, each term free of bias."""
    k, m = (rows.double() @ rows.double().T for rows in (x, y))
    cross, own, other = (_hsic(*pair) for pair in ((k, m), (k, k), (m, m)))
    return cross / max(own * other, _LEAST) ** 0.5


def _hsic(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> float:
    n = len(k)
    k, m = (kernel - kernel.diagonal().diag() for kernel in (k, m))
    mixed = (k.sum(dim=0) @ m.sum(dim=0)) * 2 / (n - 2)
    return float(((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - mixed) / (n * (n - 3)))
