"""How the tables of this folder name a module's class."""

from torch import nn


def class_key(module: nn.Module | type[nn.Module]) -> str:
    """`folder.Class` for the models of Transformers, the full name for any other class."""
    cls = module if isinstance(module, type) else type(module)
    parts = cls.__module__.split(".")
    folder = parts[2] if parts[:2] == ["transformers", "models"] else cls.__module__
    return f"{folder}.{cls.__qualname__}"
