"""With what something was made."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Of what the result depends on."""
    return {package: version(package) for package in ("hf_moe_lmc", "torch", "transformers")}
