"""Whether the weights of a checkpoint are quantised."""

from transformers import PreTrainedConfig


def quantisation(config: PreTrainedConfig) -> str | None:
    """The method by which the weights of the model of `config`, or of its text model, are quantised; None without."""
    for part in (config, config.get_text_config()):
        if found := getattr(part, "quantization_config", None):
            return str(found.get("quant_method") if isinstance(found, dict) else found)
    return None
