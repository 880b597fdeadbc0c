"""A recipe that takes seconds."""

from hf_moe_lmc.demo import Recipe

SEEDS = (5, 6)
TINY = Recipe(
    hidden_size=16,
    heads=2,
    layers=1,
    ffn_width=16,
    num_experts=3,
    expert_width=16,
    pretrain_epochs=1,
    epochs=1,
    batch_size=250,
    calibration_images=16,
    points=3,
)
