import json

import pytest

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.hub.output_record import open_output, parents_of
from tests.hub.conftest import edit_record


def test_a_merge(folder):
    output = open_output(folder / "merged")
    assert (output.command, output.shares, output.t, output.repairs) == ("merge", (0.5, 0.5), 0.5, ())
    assert [(parent.role, parent.label) for parent in output.parents] == [("reference", "a"), ("other", "b")]
    assert open_output(folder / "alignment").command == "align"


def test_no_path_of_this_machine_is_public(folder):
    edit_record(folder / "merged", lambda record: record | {"left_behind": {"diary.txt": "not known"}})
    for name in ("merged", "alignment"):
        output = open_output(folder / name)
        assert str(folder) not in output.public_content.decode()
        assert json.loads(output.public_content).keys() == output.content.keys() - {"left_behind"}


def test_labels_tell_parents_apart():
    models = {"reference": ("/x/run-1/last", None), "other 1": ("/x/run-2/last", None), "other 2": ("org/a@v1", "c")}
    assert [parent.label for parent in parents_of(models)] == ["run-1/last", "run-2/last", "org/a"]
    same = {"reference": ("/x/last", None), "other": ("/x/last", None)}
    assert [parent.label for parent in parents_of(same)] == ["last", "last"]


def test_several_outputs(folder):
    edit_record(folder / "merged", lambda record: {"format": 2, "folders": {"t-0.25": {}, "t-0.5": {}}})
    with pytest.raises(BadInputError, match=r"holds several outputs; give one of its folders: t-0\.25, t-0\.5"):
        open_output(folder / "merged")


def test_a_record_of_a_later_version(folder):
    edit_record(folder / "merged", lambda record: record | {"format": 3})
    with pytest.raises(BadInputError, match="has format 3, known is 2; upgrade"):
        open_output(folder / "merged")


@pytest.mark.parametrize(
    "harm",
    [
        {"format": None},
        {"command": "align"},
        {"command": ["merge"]},
        {"models": {}},
        {"models": [{"name": "a", "commit": None}]},
        {"models": [{"name": "", "commit": None}] * 2},
        {"models": [{"name": "a", "commit": 3}] * 2},
        {"models": ["a", "b"]},
        {"shares": [0.5]},
        {"shares": [0.5, True]},
        {"shares": [0.5, float("nan")]},
        {"shares": 0.5},
        {"shares": [10**400, 0]},
        {"alignments": []},
        {"alignments": [3]},
        {"alignments": None},
        {"repairs": [["norms"]]},
        {"repairs": 3},
        {"versions": []},
        {"xxh3": None},
    ],
)
def test_a_damaged_record(harm, folder):
    edit_record(folder / "merged", lambda record: record | harm)
    with pytest.raises(BadInputError, match=r"manifest\.json (is not as this package writes it|has format None)"):
        open_output(folder / "merged")
    edit_record(folder / "merged", lambda record: {key: value for key, value in record.items() if key not in harm})
    with pytest.raises(BadInputError) if harm.keys() != {"repairs"} else pytest.MonkeyPatch.context():
        open_output(folder / "merged")


@pytest.mark.parametrize("harm", [{"layers": []}, {"versions": 3}, {"reference": {"name": 3}}, {"other": []}])
def test_a_damaged_alignment(harm, folder):
    edit_record(folder / "alignment", lambda record: record | harm, "alignment_config.json")
    with pytest.raises(BadInputError, match=r"alignment_config\.json is not as this package writes it"):
        open_output(folder / "alignment")
