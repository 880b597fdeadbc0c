"""A merge is an ordinary checkpoint to the libraries that people use; see also benchmarks/interoperability.py."""

from string import ascii_letters, digits

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, ViTImageProcessorPil, pipeline

import hf_moe_lmc
from hf_moe_lmc import MoeAligner
from tests import families
from tests.models import moe_vit

FAMILIES = ["mixtral", "deepseek_v3", "gpt_oss"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, digit or other character that is known."""
    known = ["<pad>", "<s>", "</s>", "<unk>", *ascii_letters, *digits, *" .,;:!?-'()[]{}\"/+*=_#%&@<>|~^$"]
    words = models.WordLevel({word: i for i, word in enumerate(known[: families.VOCABULARY])}, unk_token="<unk>")
    characters = Tokenizer(words)
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=characters, **special)


@pytest.fixture(scope="module", params=FAMILIES)
def merged(request, tmp_path_factory):
    """(folder of a merge, the same merge of live models) of two models with a tokenizer."""
    folder = tmp_path_factory.mktemp("merge")
    parents = [families.build(request.param, seed=seed) for seed in (0, 1)]
    for name, model in zip("ab", parents, strict=True):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    MoeAligner.from_pretrained(folder / "a", folder / "b").merge(t=0.5, force=True, output=folder / "merged")
    return folder / "merged", hf_moe_lmc.merge(*parents, force=True)


def tokens(text: str) -> torch.Tensor:
    return tokenizer()(text, return_tensors="pt")["input_ids"]


def test_a_pipeline_generates(merged):
    """From the name of the folder alone, what the live merge generates."""
    folder, live = merged
    generate = pipeline("text-generation", model=str(folder))
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    (found,) = generate("Once upon a", return_tensors=True, **asked)
    expected = live.generate(tokens("Once upon a"), **asked)
    assert found["generated_token_ids"] == expected[0].tolist()
    assert len(set(found["generated_token_ids"][-12:])) > 1


def test_a_pipeline_classifies(tmp_path):
    torch.manual_seed(0)
    parents = [moe_vit(num_channels=3, moe_intermediate_size=8).eval() for _ in "ab"]
    for name, model in zip("ab", parents, strict=True):
        model.save_pretrained(tmp_path / name)
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / name)
    MoeAligner.from_pretrained(tmp_path / "a", tmp_path / "b").merge(t=0.5, force=True, output=tmp_path / "merged")
    classify = pipeline("image-classification", model=str(tmp_path / "merged"))
    live = hf_moe_lmc.merge(*parents, force=True)
    picture = Image.effect_noise((8, 8), 100).convert("RGB")
    found = {entry["label"]: entry["score"] for entry in classify(picture, top_k=None)}
    with torch.no_grad():
        expected = live(**classify.image_processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
    assert found == pytest.approx({live.config.id2label[i]: score for i, score in enumerate(expected.tolist())})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_peft_attaches_trains_and_loads_an_adapter(merged, tmp_path):
    folder, live = merged
    batch = tokens("The quick brown fox jumps over the lazy dog")

    def base():
        return AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")

    experts = [name for name, parameter in base().named_parameters() if ".experts." in name and parameter.ndim == 3]
    config = LoraConfig(r=2, target_parameters=experts, target_modules=["o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base(), config)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).logits, live(batch).logits)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # in the first step only the factors that start at zero move
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path)
    with torch.no_grad():
        found, trained = again.eval()(batch).logits, model.eval()(batch).logits
        assert torch.equal(found, trained)
        assert (trained - live(batch).logits).abs().max() > 1e-3
