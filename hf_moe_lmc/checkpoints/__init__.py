"""Files or Hub <-> tensors under module names, read lazily and written as a stream."""

from .checkpoint import Checkpoint
from .companions import COMPANIONS, Companions, find_companions
from .conversion import is_ignored, saved_tensors, tied_names
from .download import HubOptions, matches
from .durable import sync
from .fingerprint import Fingerprint
from .layout import Placement, place
from .output_place import MANIFEST_NAME, OF_A_CARD, check_output, check_place
from .skeleton import meta_model, quantisation, read_config
from .small_files import read_json, read_small_file
from .source import Source, find_source
from .staging import StagedFolder, output_folder
from .stored_tensor import StoredTensor, max_abs, read_header, tensor_bytes
from .writer import CheckpointWriter, Written

__all__ = [
    "COMPANIONS",
    "MANIFEST_NAME",
    "OF_A_CARD",
    "Checkpoint",
    "CheckpointWriter",
    "Companions",
    "Fingerprint",
    "HubOptions",
    "Placement",
    "Source",
    "StagedFolder",
    "StoredTensor",
    "Written",
    "check_output",
    "check_place",
    "find_companions",
    "find_source",
    "is_ignored",
    "matches",
    "max_abs",
    "meta_model",
    "output_folder",
    "place",
    "quantisation",
    "read_config",
    "read_header",
    "read_json",
    "read_small_file",
    "saved_tensors",
    "sync",
    "tensor_bytes",
    "tied_names",
]
