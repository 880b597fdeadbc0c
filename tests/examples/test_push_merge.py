"""Against the loopback Hub."""

from pathlib import Path

import push_merge
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from hf_moe_lmc import Alignment, MoeAligner, scramble
from hf_moe_lmc.demo.digits import CLASSES, IMAGE_SIZE
from hf_moe_lmc.modeling import MoeViTConfig, MoeViTForImageClassification


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """A tiny classifier of digits and a rewrite of it, where to, and little data."""
    for name in "ab":
        torch.manual_seed(0)
        config = MoeViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=14,
            num_channels=1,
            num_labels=CLASSES,
            moe_layers=[0],
            num_experts=3,
            moe_intermediate_size=8,
        )
        model = MoeViTForImageClassification(config)
        (model if name == "a" else scramble(model)[0]).save_pretrained(tmp_path / name)
    sizes = [
        "--max_eval_samples",
        "16",
        "--points",
        "3",
        "--license",
        "mit",
        "--force",
        "--output",
        str(tmp_path / "merged"),
    ]
    return [str(tmp_path / "a"), str(tmp_path / "b"), "me/merged", *sizes]


def test_a_merge_and_its_alignment_are_published(arguments, hub, tmp_path, capsys):
    push_merge.main(arguments)
    assert f"Pushed: {hub.url}/me/merged/commit/" in capsys.readouterr().out
    card = ModelCard(hub.repositories["me/merged"].files["README.md"].decode())
    assert card.data.license == "mit"
    assert "outputs differ by rounding only" in card.text
    assert "report/curves.png" in card.text
    assert "report/curves.png" in hub.repositories["me/merged"].files
    found = AutoModelForImageClassification.from_pretrained("me/merged", cache_dir=tmp_path / "cache").state_dict()
    aligner = MoeAligner.from_pretrained(*arguments[:2])
    expected = aligner.merge(Alignment.from_pretrained("me/merged-alignment"), force=True).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_dry_run_sends_nothing(arguments, hub, capsys):
    push_merge.main([*arguments, "--dry_run"])
    assert capsys.readouterr().out.startswith("Would go to me/merged, license mit:\n")
    assert not hub.repositories
    assert (Path(arguments[-1]) / "report/report.json").exists()
