import compare_checkpoints


def test_finds_all_three(tmp_path, capsys):
    compare_checkpoints.main(compare_checkpoints.CompareArguments(output_dir=str(tmp_path)))
    told = capsys.readouterr().out
    assert "in layer 1 the router rows moved and the experts did not" in told
    assert "gate_proj and up_proj are swapped in all 8 experts in layer 2" in told
    assert "unrelated to every expert of A: expert 7 in layer 3" in told
    assert (tmp_path / "comparison.png").exists()
