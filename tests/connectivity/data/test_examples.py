import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import MixtralForSequenceClassification, MixtralForTokenClassification, PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_moe_lmc.connectivity import evaluate
from hf_moe_lmc.connectivity.data import examples_for, packed_blocks, processor_of
from hf_moe_lmc.errors import BadInputError
from tests import families
from tests.checkpoints.faulty import edit_json
from tests.models import build


def words() -> PreTrainedTokenizerFast:
    """One token per word: a is 3, b is 4, ..."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(97 + i): 3 + i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_blocks():
    """Documents in a row, each with its end; empty ones and what does not fill a block are left out."""
    blocks = packed_blocks(["", "a b c", "", "d", "e f"], words(), block_size=4)
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == [[3, 4, 5, 1], [6, 1, 7, 8]]
    assert torch.equal(blocks[0]["labels"], blocks[0]["input_ids"])


def test_texts_are_read_only_as_far_as_needed():
    def texts():
        yield "a b c d"
        yield "a b c d"
        raise AssertionError("one text too many")

    assert len(packed_blocks(texts(), words(), block_size=4, max_blocks=2)) == 2


CONVERSATION = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]


def test_a_named_column_and_conversations():
    """A conversation is the text that the tokenizer's chat template makes of it."""
    model, tokenizer = build("mixtral"), words()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
    rows = Dataset.from_dict({"text": ["z"], "said": ["u a b a c d"], "messages": [CONVERSATION]})
    named, chat = (examples_for(model, rows, tokenizer, length=7, text_column=name) for name in ("said", "messages"))
    usual = examples_for(model, rows.remove_columns(["text", "said"]), tokenizer, length=7)
    assert named.tokens.tolist() == chat.tokens.tolist() == usual.tokens.tolist() == [[23, 3, 4, 3, 5, 6, 1]]
    with pytest.raises(BadInputError, match="conversations, which the tokenizer's chat template does not accept"):
        examples_for(model, rows, words(), length=7, text_column="messages")
    with pytest.raises(BadInputError, match="has the columns text, said, messages, not absent; name the column"):
        examples_for(model, rows, tokenizer, length=7, text_column="absent")


def test_too_little_text():
    with pytest.raises(BadInputError, match="3 tokens, which do not fill one block of 4"):
        packed_blocks(["a b"], words(), block_size=4)


def evaluated(model, examples, accelerator):
    return evaluate(model, accelerator.prepare(DataLoader(examples, batch_size=2)), accelerator)


@pytest.fixture
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_language_model(accelerator):
    model, rows = build("mixtral", dtype=torch.float32), Dataset.from_dict({"text": ["a b c d e f g h i j"]})
    examples = examples_for(model, rows, words(), length=5)
    assert evaluated(model, examples, accelerator).count == 2 * 4


def test_images(accelerator, tmp_path):
    """Grey images for a model of one channel, scaled and normalised as the checkpoint's processor says."""
    pictures = [Picture.fromarray(np.full((10, 12, 3), shade, np.uint8)) for shade in (0, 255, 128)]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    rows = Dataset.from_dict({"image": pictures, "label": [0, 4, 2]}, features=features)
    ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(tmp_path)
    model = build("moe_vit sparse", dtype=torch.float32)
    examples = examples_for(model, rows, processor_of(model, tmp_path), max_examples=2)
    assert len(examples) == 2
    white = examples_for(model, rows, processor_of(model, tmp_path))
    (white,) = (white[i] for i in range(3) if int(white[i]["labels"]) == 4)
    assert white["pixel_values"].shape == (1, 8, 8)
    assert white["pixel_values"].mean() == pytest.approx(1)
    assert evaluated(model, examples, accelerator).count == 2


def test_sequence_classification(accelerator):
    """Padding changes nothing."""
    config = build("mixtral").config
    config.num_labels, config.pad_token_id = 3, 0
    model = MixtralForSequenceClassification(config).eval()
    rows = Dataset.from_dict({"text": ["a b c", "d", "e f"], "label": [0, 1, 2]})
    short, long = (examples_for(model, rows, words(), length=length) for length in (3, 9))
    assert [6, 0, 0] in [short[i]["input_ids"].tolist() for i in range(3)]
    a, b = (evaluated(model, examples, accelerator) for examples in (short, long))
    assert a.count == 3
    assert a.loss == pytest.approx(b.loss, rel=1e-5)


def test_encoder_decoder(accelerator):
    """Labels stand at their position, and padding does not count: against the model's own loss."""
    model = families.build("switch_transformers")
    model.config.decoder_start_token_id = 0
    rows = Dataset.from_dict({"source": ["a b c", "d e"], "target": ["f g", "h"]})
    examples = examples_for(model, rows, words(), length=4)
    assert examples[1]["labels"].tolist() == [10, -100, -100, -100]
    found = evaluated(model, examples, accelerator)
    batch = {name: torch.stack([examples[i][name] for i in range(2)]) for name in examples[0]}
    with torch.no_grad():
        logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert found.count == 3
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)


def test_another_kind_of_model():
    model = MixtralForTokenClassification(build("mixtral").config)
    with pytest.raises(BadInputError, match="no examples are made for a MixtralForTokenClassification"):
        examples_for(model, Dataset.from_dict({"text": ["a"], "label": [0]}), words())


def test_a_missing_column():
    rows = Dataset.from_dict({"words": ["a"]}, features=Features({"words": Value("string")}))
    with pytest.raises(
        BadInputError,
        match="has the columns words, not text or content or messages or conversations; name the column of the text",
    ):
        examples_for(build("mixtral"), rows, words())


def test_a_checkpoint_without_a_processor(tmp_path):
    with pytest.raises(BadInputError, match="has no image processor that loads"):
        processor_of(build("moe_vit sparse"), tmp_path)


@pytest.mark.parametrize("settings", [{"eos_token": 5}, {"tokenizer_class": 5}, {"added_tokens_decoder": {"x": {}}}])
def test_a_tokenizer_with_settings_that_are_none(settings, tmp_path):
    build("mixtral").config.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", lambda values: values.update(settings))
    with pytest.raises(BadInputError, match="has no tokenizer that loads: "):
        processor_of(build("mixtral"), tmp_path)
