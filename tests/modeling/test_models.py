import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.modeling import MoeGPT2Config, MoeGPT2LMHeadModel, MoeViTConfig, MoeViTForImageClassification
from hf_moe_lmc.modeling.moe_block import MoeBlock
from tests.models import build, inputs, logits, moe_gpt2, moe_vit

OURS = ["moe_vit dense", "moe_vit sparse", "moe_vit shared", "moe_gpt2 sparse", "moe_gpt2 shared"]


@pytest.fixture(params=OURS)
def name(request):
    return request.param


def test_save_and_load_with_the_auto_classes(name, tmp_path):
    model = build(name, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if "vit" in name else AutoModelForCausalLM
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True, experts_implementation="eager")
    assert type(loaded) is type(model)
    assert not any(report.values())
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_implementations_agree(name, implementation):
    family, variant = name.split()
    model = {"moe_vit": moe_vit, "moe_gpt2": moe_gpt2}[family](variant, moe_intermediate_size=8).eval()
    model.set_experts_implementation("eager")
    expected = logits(model)
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_block_equals_the_paper(name):
    """D(x) = sum over the top-K of softmax(scores) E(x), plus the shared expert; arXiv:2509.11348, section 2."""
    model = build(name)
    spec = moe_layers(model)[0]
    block, layer = model.get_submodule(spec.name), spec.read(model.state_dict())
    x = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = 5 if "dense" in name else 2
    expected = torch.zeros_like(x)
    for token, output in zip(x, expected, strict=True):
        scores = layer.router.weight @ token + layer.router.bias
        best = scores.argsort(descending=True)[:k]
        for weight, e in zip(scores[best].softmax(0), best, strict=True):
            output += weight * mlp(layer.experts, int(e), token)
        if layer.shared_experts is not None:
            output += mlp(layer.shared_experts, 0, token)
    torch.testing.assert_close(block(x).detach(), expected)


def mlp(experts, e, token):
    return experts.down_proj[e] @ F.relu(experts.up_proj[e] @ token + experts.up_bias[e]) + experts.down_bias[e]


def test_initialisation():
    """Experts N(0, 1 / fan_in), routers N(0, 0.02^2), biases 0, whatever the backbone's initializer_range."""
    torch.manual_seed(0)
    config = MoeViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=256,
        moe_variant="shared",
        num_experts=8,
        initializer_range=0.3,
    )
    block = MoeViTForImageClassification(config).get_submodule("vit.layers.0.mlp")
    expected = {
        "router.weight": 0.02,
        "experts.up_proj": 64**-0.5,
        "experts.down_proj": 256**-0.5,
        "shared_experts.up_proj.weight": 64**-0.5,
        "shared_experts.down_proj.weight": 256**-0.5,
    }
    for name, parameter in block.named_parameters():
        assert parameter.std().item() == pytest.approx(expected.get(name, 0.0), rel=0.1), name


DENSE = {
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=14,
            image_size=8,
            patch_size=4,
            num_channels=1,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=12, n_layer=3, n_head=2, vocab_size=31, n_positions=16, bos_token_id=0, eos_token_id=1)
    ),
}


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize(("layers", "replaced"), [([1], [1]), ([0, 2], [0, 2]), (None, [0, 1, 2])])
def test_from_dense(family, layers, replaced):
    torch.manual_seed(0)
    dense = DENSE[family]()
    model_class = MoeViTForImageClassification if family == "vit" else MoeGPT2LMHeadModel
    model = model_class.from_dense(dense, layers, moe_variant="shared", num_experts=3)
    blocks = {name for name, module in model.named_modules() if isinstance(module, MoeBlock)}
    assert {int(name.split(".")[-2]) for name in blocks} == set(replaced)
    tensors = model.state_dict()
    for key, tensor in dense.state_dict().items():
        if not any(key.startswith(f"{name}.") for name in blocks):
            assert torch.equal(tensors[key], tensor), key
    assert model.config.num_labels == dense.config.num_labels
    assert moe_layers(model)[0].read(tensors).symmetry_shape[0] == 3


def test_initialisation_outside_the_experts_is_the_dense_one():
    """GPT-2 scales the projections back into the residual stream by 1 / sqrt(2 layers)."""
    torch.manual_seed(0)
    model = moe_gpt2(n_embd=64, n_layer=8)
    assert model.transformer.h[0].attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert model.transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_from_dense_draws_new_experts_each_time():
    dense = DENSE["vit"]()
    a, b = (MoeViTForImageClassification.from_dense(dense, [0]) for _ in range(2))
    assert not torch.equal(a.vit.layers[0].mlp.experts.up_proj, b.vit.layers[0].mlp.experts.up_proj)


def test_from_dense_of_another_class():
    with pytest.raises(BadInputError, match=r"MoeViTForImageClassification\.from_dense cannot start from a GPT2LMHead"):
        MoeViTForImageClassification.from_dense(DENSE["gpt2"]())


@pytest.mark.parametrize("name", ["moe_vit sparse", "moe_gpt2 sparse"])
def test_load_balancing_loss(name):
    """E x sum_e (share of the choices) x (mean probability), added to the task loss with its coefficient."""
    model = build(name, dtype=torch.float32)
    batch = inputs(model)
    batch["labels"] = torch.arange(6) % 5 if "vit" in name else batch["input_ids"]
    plain, balanced = model(**batch), model(**batch, output_router_logits=True)
    assert plain.aux_loss is None
    probabilities = torch.cat([layer.softmax(-1) for layer in balanced.router_logits])
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2).indices, 1.0)
    expected = 5 * (chosen.mean(0) * probabilities.mean(0)).sum()
    torch.testing.assert_close(balanced.aux_loss, expected)
    torch.testing.assert_close(balanced.loss, plain.loss + model.config.router_aux_loss_coef * expected)
    assert len(balanced.router_logits) == len(moe_layers(model))
    balanced.loss.backward()
    for spec in moe_layers(model):
        assert model.get_parameter(dict(spec.router.tensors)["bias"]).grad.abs().sum() > 0


def test_gpt2_generates_with_and_without_cache():
    model = build("moe_gpt2 shared", dtype=torch.float32)
    prompt = torch.tensor([[3, 4, 5]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options))


def test_gpt2_ties_its_embeddings():
    model = moe_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moe_layers": [3]}, "names layer 3, but the model has layers 0 to 2"),
        ({"num_experts_per_tok": 6}, "choose 1 to"),
    ],
)
def test_configurations_that_cannot_be_built(fields, message):
    with pytest.raises(BadInputError, match=message):
        moe_vit(**fields)


def test_unknown_variant():
    with pytest.raises(Exception, match="moe_variant"):
        MoeGPT2Config(moe_variant="both")
