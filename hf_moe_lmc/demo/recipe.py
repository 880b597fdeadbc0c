"""The settings of the demo."""

from dataclasses import dataclass

from hf_moe_lmc.names import MoeVariant


@dataclass(frozen=True)
class Recipe:
    """A small ViT on MNIST, its first FFN replaced by a Mixture of Experts; chosen on seeds 1 to 4.

    Learning must outweigh the experts' random start, or there is nothing to align: hence the large learning rate and
    weight decay of the Mixture of Experts.

    Args:
        variant: how experts are combined; see `MoeFields`.
        hidden_size, heads, layers, patch_size, ffn_width: the ViT.
        num_experts, experts_per_token, expert_width: its Mixture of Experts.
        pretrain_epochs, pretrain_lr, pretrain_decay, pretrain_seed: of the dense model that all copies start from.
        shift: pixels by which training images are moved at most, anew every time; 4,000 are few.
        epochs, backbone_lr, moe_lr, weight_decay: of the fine-tuning, everything trained.
        batch_size: training images per step.
        calibration_images: training images that the rescale control is calibrated on.
        points: evaluated points of every path.
    """

    variant: MoeVariant = "sparse"
    hidden_size: int = 48
    heads: int = 4
    layers: int = 2
    patch_size: int = 7
    ffn_width: int = 128
    num_experts: int = 4
    experts_per_token: int = 2
    expert_width: int = 256
    pretrain_epochs: int = 30
    pretrain_lr: float = 3e-3
    pretrain_decay: float = 0.05
    pretrain_seed: int = 0
    shift: int = 1
    epochs: int = 6
    backbone_lr: float = 1e-3
    moe_lr: float = 1e-2
    weight_decay: float = 1.0
    batch_size: int = 64
    calibration_images: int = 256
    points: int = 11
