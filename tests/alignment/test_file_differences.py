"""Tokenizers, chat templates and other small files of a pair."""

import json

import pytest

from hf_moe_lmc.alignment.file_differences import file_differences
from hf_moe_lmc.errors import BadInputError

BYTES = {"type": "ByteLevel", "add_prefix_space": False}
TOKENIZER = {
    "version": "1.0",
    "normalizer": None,
    "pre_tokenizer": BYTES,
    "added_tokens": [{"id": 4, "content": "<s>", "special": True, "lstrip": False, "rstrip": False}],
    "model": {
        "type": "BPE",
        "unk_token": None,
        "ignore_merges": False,
        "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3},
        "merges": ["a b", "b a"],
    },
}


def tokenizer(**model: object) -> dict:
    return TOKENIZER | {"model": TOKENIZER["model"] | model}


@pytest.fixture
def compare(tmp_path):
    """Write the files of a pair, and compare them."""

    def check(reference: dict, other: dict) -> tuple[list[str], list[str]]:
        """The harmful differences and the others."""
        for side, files in (("a", reference), ("b", other)):
            (tmp_path / side).mkdir()
            for name, content in files.items():
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / side / name).write_text(text)
        differences = file_differences(tmp_path / "a", tmp_path / "b")
        return tuple([x.text for x in differences if x.harmful == harmful] for harmful in (True, False))

    return check


@pytest.mark.parametrize(
    "other",
    [
        TOKENIZER,
        tokenizer(merges=[["a", "b"], ["b", "a"]]),  # as later versions write it
        {key: value for key, value in TOKENIZER.items() if key not in ("version", "normalizer")},
        tokenizer(byte_fallback=False),
        TOKENIZER | {"padding": {"length": 4}, "truncation": {"max_length": 5}},
        TOKENIZER | {"pre_tokenizer": BYTES | {"trim_offsets": True, "use_regex": True}},
        TOKENIZER | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES | {"trim_offsets": False}]}},
        TOKENIZER | {"normalizer": {"type": "Sequence", "normalizers": []}},
        TOKENIZER | {"added_tokens": [{"id": 4, "content": "<s>", "special": False}]},
    ],
)
def test_one_tokenizer_written_in_two_ways(compare, other):
    assert compare({"tokenizer.json": TOKENIZER}, {"tokenizer.json": other}) == ([], [])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (tokenizer(vocab={"a": 1, "b": 0, "ab": 2, "ba": 3}), "token 'a' is 0 in the reference, 1 in the other"),
        (tokenizer(vocab={"a": 0, "b": 1, "ab": 2, "aa": 3}), "token 'aa' is None in the reference, 3 in the other"),
        (
            TOKENIZER | {"added_tokens": [{"id": 4, "content": "</s>"}]},
            "'</s>' is None in the reference, 4 in the other",
        ),
        (TOKENIZER | {"pre_tokenizer": BYTES | {"use_regex": False}}, "in its pre_tokenizer"),
        (TOKENIZER | {"pre_tokenizer": BYTES | {"add_prefix_space": True}}, "in its pre_tokenizer"),
        (tokenizer(merges=["b a", "a b"]), "in its model"),
        (tokenizer(ignore_merges=True), "in its model"),
        (TOKENIZER | {"normalizer": {"type": "NFC"}}, "in its normalizer"),
        (TOKENIZER | {"pre_tokenizer": {"type": "Whitespace"}}, "in its pre_tokenizer"),
        (TOKENIZER | {"added_tokens": [{"id": 4, "content": "<s>", "lstrip": True}]}, "in its added_tokens"),
    ],
)
def test_another_tokenizer(compare, other, words):
    (found,), harmless = compare({"tokenizer.json": TOKENIZER}, {"tokenizer.json": other})
    assert found.startswith("tokenizer.json differs")
    assert words in found
    assert not harmless


@pytest.mark.parametrize("sides", [("reference", "other"), ("other", "reference")])
@pytest.mark.parametrize("lack", ["added_tokens", "vocab"])
def test_further_tokens(compare, sides, lack):
    less = TOKENIZER | {"added_tokens": []} if lack == "added_tokens" else tokenizer(vocab={"a": 0, "b": 1, "ab": 2})
    harmful, (note,) = compare(**dict(zip(sides, ({"tokenizer.json": x} for x in (TOKENIZER, less)), strict=True)))
    assert not harmful
    assert note.startswith(f"tokenizer.json of the {sides[0]} has 1 more tokens, such as ")


def test_a_token_by_the_name_of_an_entry(compare):
    harmful, _ = compare({"vocab.json": {"tokens": 0, "model": 1}}, {"vocab.json": {"tokens": 0, "model": 2}})
    assert "token 'model' is 1 in the reference, 2 in the other" in harmful[0]


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        (
            {"vocab.json": {"a": 0, "b": 1}, "merges.txt": "#version: 0.2\na b\n"},
            {"merges.txt": "#version: 0.2\nb a\n"},
        ),
        ({"vocab.json": {"a": 0, "b": 1}, "merges.txt": "a b\n"}, {"vocab.json": {"a": 1, "b": 0}}),
        ({"vocab.json": {"a": 0}, "added_tokens.json": {"<s>": 1}}, {"added_tokens.json": {"<s>": 2}}),
        ({"vocab.txt": "a\nb\n"}, {"vocab.txt": "b\na\n"}),
        ({"tokenizer.model": "protobuf"}, {"tokenizer.model": "another"}),
    ],
)
def test_other_kinds_of_files(compare, files, changed):
    harmful, _ = compare(files, files | changed)
    assert [line.split()[0] for line in harmful] == [*changed]


def test_the_same_vocabulary_in_another_order_of_keys(compare):
    a = {"vocab.json": {"a": 0, "b": 1}, "merges.txt": "#version: 0.2\na b\n"}
    assert compare(a, {"vocab.json": '{"b":1,\n"a":0}', "merges.txt": "a b"}) == ([], [])


def test_a_unigram_model(compare):
    def unigram(*vocabulary: tuple[str, float]) -> dict:
        return {"tokenizer.json": TOKENIZER | {"model": {"type": "Unigram", "vocab": vocabulary}}}

    (found,), _ = compare(unigram(("a", -1.0), ("b", -2.0)), unigram(("b", -2.0), ("a", -1.0)))
    assert "token 'a' is 0 in the reference, 1 in the other" in found


@pytest.mark.parametrize("name", ["tekken.json", "tiktoken.model", "tokenizer.model"])
def test_tokenizers_that_are_compared_as_bytes(compare, name):
    assert compare({name: "a"}, {name: "b"}) == ([f"{name} differs: give models of one tokenizer"], [])


@pytest.mark.parametrize(("present", "lacks"), [("reference", "other"), ("other", "reference")])
def test_one_has_none(compare, present, lacks):
    sides = {"reference": {}, "other": {}, present: {"tokenizer.json": TOKENIZER}}
    assert compare(**sides) == ([], [f"the {lacks} has no tokenizer; it is taken to be the same"])


def test_kinds_that_cannot_be_compared(compare):
    harmful, (note,) = compare({"tokenizer.json": TOKENIZER}, {"tokenizer.model": "protobuf"})
    assert not harmful
    assert "not compared" in note


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("generation_config.json", {"temperature": 0.6}, {"temperature": 1.0}),
        ("special_tokens_map.json", {"pad_token": "<s>"}, {}),
        ("preprocessor_config.json", {"size": 224}, {"size": 256}),
        ("chat_template.jinja", "{{ a }}", "{{ b }}"),
        ("chat_template.json", {"chat_template": "{{ a }}"}, {"chat_template": "{{ b }}"}),
        ("tokenizer_config.json", {"chat_template": "{{ a }}"}, {"chat_template": "{{ b }}"}),
    ],
)
def test_differences_that_do_no_harm(compare, name, a, b):
    harmful, (note,) = compare({name: a}, {name: b})
    assert not harmful
    assert note.endswith(("differs", "in the other only"))


def test_who_wrote_the_settings_of_generation_does_not_matter(compare):
    name = "generation_config.json"
    assert compare({name: {"transformers_version": "5.17.0"}}, {name: {"transformers_version": "5.23.0"}}) == ([], [])


@pytest.mark.parametrize("content", ["{", "[]", {"added_tokens": [1]}, {"model": "BPE"}, {"added_tokens": [{"id": 1}]}])
def test_a_damaged_tokenizer(compare, content):
    with pytest.raises(BadInputError, match=r"tokenizer\.json"):
        compare({"tokenizer.json": TOKENIZER}, {"tokenizer.json": content})
