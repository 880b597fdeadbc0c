"""Files or Hub <-> tensors under module names, read lazily and written as a stream."""

from .checkpoint import Checkpoint
from .config_file import read_config
from .conversion import tied_names
from .json_file import read_json
from .layout import Layout, place
from .magnitude import largest_magnitude as max_abs
from .output_folder import MANIFEST_NAME, StagedFolder, check_output, output_folder
from .quantisation import quantisation
from .reused_memory import ReusedMemory
from .skeleton import meta_model
from .source import COMPANIONS, HubOptions, Source, find_source
from .stored_tensor import read_header, tensor_bytes
from .sync import sync
from .writer import CheckpointWriter

__all__ = [
    "COMPANIONS",
    "MANIFEST_NAME",
    "Checkpoint",
    "CheckpointWriter",
    "HubOptions",
    "Layout",
    "ReusedMemory",
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
