"""What a result depends on besides its inputs."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Package -> its version."""
    return {package: version(package) for package in ("hf_moe_lmc", "torch", "transformers")}
