"""Files or Hub <-> tensors under module names, read lazily and written as a stream."""

from .checkpoint import Checkpoint
from .conversion import tied_names
from .durable import sync
from .json_file import read_json
from .layout import place
from .skeleton import meta_model, quantisation, read_config
from .source import COMPANIONS, HubOptions, Source, find_source
from .staging import MANIFEST_NAME, StagedFolder, check_output, output_folder
from .stored_tensor import max_abs, read_header, tensor_bytes
from .writer import CheckpointWriter

__all__ = [
    "COMPANIONS",
    "MANIFEST_NAME",
    "Checkpoint",
    "CheckpointWriter",
    "HubOptions",
    "Source",
    "StagedFolder",
    "check_output",
    "find_source",
    "max_abs",
    "meta_model",
    "output_folder",
    "place",
    "quantisation",
    "read_config",
    "read_header",
    "read_json",
    "sync",
    "tensor_bytes",
    "tied_names",
]
