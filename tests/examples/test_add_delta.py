"""What a fine-tune learned, added to a base in another order."""

import add_delta
import torch
from transformers import AutoModelForCausalLM

from hf_moe_lmc import scramble
from tests.models import mixtral


def test_the_delta_finds_its_experts(tmp_path, capsys):
    """Between a base and itself in another order it must be the fine-tune of the first, order by order."""
    base = mixtral(hidden_size=16, num_hidden_layers=1, vocab_size=31)
    base.save_pretrained(tmp_path / "base")
    other, planted = scramble(base)
    other.save_pretrained(tmp_path / "other")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "tuned")
    folders = [str(tmp_path / name) for name in ("base", "other", "tuned")]
    add_delta.main([*folders, "--output", str(tmp_path / "added"), "--scale", "2"])
    assert "Written to" in capsys.readouterr().out
    added = AutoModelForCausalLM.from_pretrained(tmp_path / "added").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    tuned = planted.inverse().apply(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")).state_dict()
    for name, tensor in added.items():
        torch.testing.assert_close(tensor, base[name] + 2 * (tuned[name] - base[name]), atol=1e-6, rtol=0)
        assert not torch.equal(tensor, base[name])
