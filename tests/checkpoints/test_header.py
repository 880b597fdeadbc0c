"""Faults of the header of a safetensors file."""

import json

import pytest

from tests.checkpoints.faulty import edit_header, join, shards, split

FIRST = "model.layers.0.input_layernorm.weight"


def change(key: str, **fields: object):
    return lambda header, _: header[key].update(fields)


def moved(by: int, first: int = 1):
    """Move all tensors from the one at position `first` on by some bytes."""

    def fault(header, keys):
        for key in keys[first:]:
            header[key]["data_offsets"] = [offset + by for offset in header[key]["data_offsets"]]

    return fault


HEADERS = {
    "overlap": (moved(-4), ["overlaps another tensor or leaves a hole"]),
    "hole": (moved(4), ["overlaps another tensor or leaves a hole"]),
    "hole before the first": (moved(4, first=0), ["overlaps another tensor or leaves a hole"]),
    "reversed offsets": (lambda h, _: h[FIRST]["data_offsets"].reverse(), [FIRST, "does not fill"]),
    "negative offsets": (change(FIRST, data_offsets=[-48, 0]), [FIRST, "are not lists of sizes"]),
    "offsets of no numbers": (change(FIRST, data_offsets=["0", "48"]), [FIRST, "are not lists of sizes"]),
    "one offset": (change(FIRST, data_offsets=[0]), [FIRST, "are not lists of sizes"]),
    "offset beyond 64 bits": (change(FIRST, data_offsets=[2**64, 2**64 + 48]), [FIRST, "are not lists of sizes"]),
    "shape that overflows": (change(FIRST, shape=[2**62, 2**62, 16]), [FIRST, "does not fill"]),
    "shape beyond the file": (change(FIRST, shape=[2**40], data_offsets=[0, 2**42]), [FIRST]),
    "shape that overflows, of nothing": (
        change(FIRST, shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
        ["holds nothing"],
    ),
    "no element": (change(FIRST, shape=[0, 12], data_offsets=[0, 0]), [FIRST, "of shape [0, 12] holds nothing"]),
    "negative shape": (change(FIRST, shape=[-12]), [FIRST, "are not lists of sizes"]),
    "shape of a float": (change(FIRST, shape=[12.0]), [FIRST, "are not lists of sizes"]),
    "shape of a bool": (change(FIRST, shape=[True, 12]), [FIRST, "are not lists of sizes"]),
    "shape is no list": (change(FIRST, shape=12), [FIRST, "are not lists of sizes"]),
    "unknown dtype": (change(FIRST, dtype="F12"), [FIRST, "dtype 'F12' is not known"]),
    "dtype of no name": (change(FIRST, dtype=["F32"]), [FIRST, "is not known"]),
    "no dtype": (lambda h, _: h[FIRST].pop("dtype"), [FIRST, "is not {dtype, shape, data_offsets}"]),
    "an entry too many": (change(FIRST, code="import os"), [FIRST, "is not {dtype, shape, data_offsets}"]),
    "entry is no object": (lambda h, _: h.update({FIRST: [1]}), [FIRST, "is not {dtype, shape, data_offsets}"]),
    "no tensors": (lambda h, _: h.clear(), ["but its header describes"]),
    "tensor left out": (lambda h, keys: h.pop(keys[-1]), ["but its header describes"]),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_faults_of_an_entry(single, refused, fault):
    edit, words = HEADERS[fault]
    edit_header(edit)(shards(single)[0])
    refused(single, "model.safetensors", *words)


TEXTS = {
    "not JSON": (lambda header: b"{" + header, "is not valid JSON"),
    "not UTF-8": (lambda header: header.replace(b"norm", b"n\xffrm", 1), "is not UTF-8 text"),
    "a list": (lambda header: b"[]", "holds a JSON list"),
    "empty": (lambda header: b"", "is not valid JSON"),
    "nested": (lambda header: b"[" * 100_000, "is nested too deeply"),
    "duplicate key": (lambda header: header.rstrip()[:-1] + b"," + header.lstrip()[1:], "occurs twice"),
}


@pytest.mark.parametrize("fault", TEXTS)
def test_faults_of_the_text(single, refused, fault):
    edit, words = TEXTS[fault]
    file = shards(single)[0]
    header, data = split(file)
    join(file, edit(header), data)
    refused(single, "model.safetensors", words)


@pytest.mark.parametrize("length", [0, 10**6, 10**8 + 1, 2**63, 2**64 - 1])
def test_faults_of_the_length(single, refused, length):
    file = shards(single)[0]
    header, data = split(file)
    join(file, header, data, length)
    with file.open("r+b") as opened:  # as long as it says, where a disk allows that
        opened.truncate(max(file.stat().st_size, min(length, 10**10) // 2))
    refused(single, "model.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_less_than_a_header(single, refused, size):
    file = shards(single)[0]
    file.write_bytes(file.read_bytes()[:size])
    refused(single, "model.safetensors", f"cut off at {size} bytes")


def test_harmless(single, accepted):
    """Metadata of any kind, and a header that is not padded."""
    file = shards(single)[0]
    header, data = split(file)
    values = json.loads(header) | {"__metadata__": {"format": "np", "note": "ü"}}
    join(file, json.dumps(values, separators=(",", ":")).encode(), data)
    accepted(single)
