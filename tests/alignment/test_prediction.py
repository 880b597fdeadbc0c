from dataclasses import replace

import pytest

from hf_moe_lmc.alignment import AlignmentConfig, Machine, Resources, WriteOptions, check_models, open_model
from hf_moe_lmc.alignment.plan import both, plan_alignment, plan_writing
from hf_moe_lmc.alignment.prediction import PROBE_BYTES
from tests import families

MACHINE = Machine(matched=1e-3, unit_pairs=1e-2, experts=1.0, averaged=1e-4, reading=1e-5, writing=1e-6)


def plan(tmp_path, **sizes):
    models = check_models([open_model(families.build("qwen2_moe", **sizes)) for _ in range(2)])
    aligning = plan_alignment(models, AlignmentConfig(), Resources("cpu"))
    return both(aligning, plan_writing(models, [models.reference], tmp_path / "out", WriteOptions()))


def test_all_that_a_merge_does_is_counted(tmp_path):
    needs = plan(tmp_path)
    models = check_models([open_model(families.build("qwen2_moe")) for _ in range(2)])
    layers = [spec.read(models.reference.on_meta) for spec in models.reference.layers]
    banks = [bank for layer in layers for bank in (layer.experts, layer.shared_experts) if bank]
    assert needs.experts == sum(len(bank.up_proj) for bank in banks)
    assert needs.unit_pairs == sum(bank.up_proj.shape[0] * bank.up_proj.shape[1] ** 2 for bank in banks)
    size = sum(models.reference.sizes.values())
    assert (needs.averaged, needs.written, needs.read) == (2 * size, size, needs.matched + 2 * size)
    expected = 1e-3 * needs.matched + 1e-2 * needs.unit_pairs + needs.experts + 1e-4 * needs.averaged
    expected += 1e-5 * (needs.read + needs.written) + 1e-6 * needs.written
    assert MACHINE.seconds(needs) == pytest.approx(expected)


def test_processes_divide_layers_and_share_the_disk(tmp_path):
    needs, disk = replace(plan(tmp_path), layers=6), replace(MACHINE, matched=0, unit_pairs=0, experts=0, averaged=0)
    one, four, many = (MACHINE.seconds(needs, processes) - disk.seconds(needs) for processes in (1, 4, 100))
    assert four == pytest.approx(one * 2 / 6)
    assert many == pytest.approx(one / 6)
    assert disk.seconds(needs, 100) == disk.seconds(needs)


def test_a_machine_is_measured(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    machine = Machine.measured(tmp_path / "file", tmp_path)
    assert min(machine.matched, machine.averaged, machine.reading, machine.writing) > 0
    assert machine.writing * PROBE_BYTES < 600
    assert Machine.measured(None, None).reading == Machine.measured(None, None).writing == 0
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
