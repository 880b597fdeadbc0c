import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MixtralForCausalLM

from hf_moe_lmc.checkpoints import meta_model, read_config
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from hf_moe_lmc.modeling import MoeGPT2Config
from tests import families, models, multimodal
from tests.checkpoints.faulty import edit_json


@pytest.fixture
def folder(tmp_path):
    """A config.json of the package's GPT-2, as saved."""
    models.build("moe_gpt2 shared", dtype=torch.bfloat16).config.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["MoeGPT2LMHeadModel"], dtype="bfloat16")
    return tmp_path


def edit(folder, **fields):
    file = folder / "config.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | fields))


def test_a_skeleton_has_shapes_and_dtypes_and_no_memory(folder):
    model = meta_model(read_config(folder))
    live = models.build("moe_gpt2 shared", dtype=torch.bfloat16).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in live.items()} == {
        name: (t.shape, t.dtype) for name, t in model.state_dict().items()
    }
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_a_model_of_many_terabytes_is_no_burden(folder):
    edit(folder, n_embd=65536, n_layer=200, moe_layers=None, num_experts=4096, moe_intermediate_size=65536)
    assert sum(parameter.numel() for parameter in meta_model(read_config(folder)).parameters()) > 10**15


def test_fields_that_choose_code_are_dropped(folder):
    edit(
        folder,
        attn_implementation="someone/kernels",
        _attn_implementation_internal="someone/kernels",
        auto_map={"AutoConfig": "evil.Evil"},
    )
    config = read_config(folder)
    assert type(config) is MoeGPT2Config
    assert not hasattr(config, "auto_map")
    assert meta_model(config).config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "absent"}, r"config\.json: the installed Transformers does not know model_type 'absent'"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["moe_gpt2"]}, "model_type"),
        ({"architectures": ["os"]}, "names the model class os, which"),
        ({"architectures": ["GPT2LMHeadModel"]}, "names the model class GPT2LMHeadModel, which"),
        ({"n_layer": 10**9}, "config.json: n_layer is 1000000000; expected 0 to 10000"),
        ({"num_experts": 10**6}, "config.json: num_experts is 1000000; expected"),
        ({"n_embd": -1}, "config.json"),
        ({"n_embd": "wide"}, "config.json"),
        ({"moe_variant": "both"}, "config.json"),
    ],
)
def test_bad_fields_are_refused(folder, fields, message):
    edit(folder, **fields)
    with pytest.raises(BadInputError, match=message) as refusal:
        meta_model(read_config(folder))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("names", [None, [], ["FSDPMixtralForCausalLM"], ["MixtralMoEForCausalLM"], "absent"])
def test_names_that_transformers_loads_too(saved, tmp_path, names):
    """By the model type, where the class name is of a wrapper, of the authors' own code, or not there."""
    shutil.copy(saved / "single" / "config.json", tmp_path)
    edit_json(
        tmp_path / "config.json",
        lambda values: values.pop("architectures") if names == "absent" else values.update(architectures=names),
    )
    assert type(meta_model(read_config(tmp_path))) is MixtralForCausalLM
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))) is MixtralForCausalLM


@pytest.mark.parametrize("family", families.supported())
def test_without_a_class_name_a_family_is_its_own_or_none(family):
    """Parts of models, such as the text model of one that sees, have no class for their type."""
    model = families.build(family)
    model.config.architectures = None
    try:
        assert type(meta_model(model.config)) is type(model)
    except UnsupportedArchitectureError:
        assert not type(model).__name__.endswith(("ForCausalLM", "ForConditionalGeneration"))


@pytest.mark.parametrize("name", multimodal.supported())
def test_without_a_class_name_a_multimodal_model_is_whole(name):
    model = multimodal.build(name)
    model.config.architectures = None
    assert type(meta_model(model.config)) is type(model)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, "\ud800".encode("utf-16", "surrogatepass")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInputError, match=r"config\.json (is not valid JSON|is not UTF-8|is nested|holds a)"):
        read_config(tmp_path)


def test_an_endless_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(BadInputError, match="is no metadata file"):
        read_config(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"config\.json is missing"):
        read_config(tmp_path)


def test_transformers_reads_the_same(folder):
    expected = AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""}
    assert read_config(folder).to_dict() == expected
