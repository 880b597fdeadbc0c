"""Data of the examples: bundled with what is installed, in local files, or on the Hub."""

from dataclasses import dataclass, field
from pydoc_data.topics import topics

from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_moe_lmc.connectivity.data import load_rows, packed_blocks
from hf_moe_lmc.connectivity.data.examples import TEXTS, column


@dataclass
class TextArguments:
    """Texts in blocks of tokens; the last blocks are kept for evaluation."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "a local file or folder, or the id of a dataset on the Hub; default: the manual of Python"},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "of a dataset on the Hub"})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "of a dataset on the Hub: branch, tag, commit"}
    )
    dataset_split: str = field(default="train", metadata={"help": "of a dataset on the Hub"})
    block_size: int = field(default=64, metadata={"help": "tokens per block"})
    vocab_size: int = field(default=1000, metadata={"help": "of the tokenizer that is trained where there is none"})
    max_train_samples: int | None = field(default=None, metadata={"help": "blocks to train on (default: all)"})
    max_eval_samples: int = field(default=128, metadata={"help": "blocks to evaluate on"})

    def texts(self) -> list[str]:
        """All texts in their order."""
        if self.dataset is None:
            return [topics[name] for name in sorted(topics)]
        rows = load_rows(self.dataset, self.dataset_config, self.dataset_split, self.dataset_revision)
        return rows[column(rows, TEXTS)][:]

    def blocks(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
        """(train, evaluation), which have no token in common."""
        blocks = packed_blocks(self.texts(), tokenizer, self.block_size)
        train, end = len(blocks) - self.max_eval_samples, len(blocks)
        if train < 1:
            raise ValueError(f"the text gives {end} blocks; --max_eval_samples {self.max_eval_samples} leaves none")
        number = min(train, self.max_train_samples or train)
        return Subset(blocks, range(number)), Subset(blocks, range(train, end))


def tokenizer_for(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<end>", eos_token="<end>")
