"""ViT with Mixture-of-Experts layers."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .configuration import MoeViTConfig
from .moe_block import MoeBlock, MoeRouter
from .moe_pretrained import MoePreTrainedModel, load_balancing_loss


@dataclass
class MoeImageClassifierOutput(ImageClassifierOutput):
    """`ImageClassifierOutput` with the load-balancing loss and every layer's router logits `[T, E]`."""

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class MoeViTPreTrainedModel(MoePreTrainedModel, ViTPreTrainedModel):
    """`ViTPreTrainedModel` with the configuration, initialisation and router logits of a Mixture of Experts."""

    config: MoeViTConfig
    _can_record_outputs = {
        **(ViTPreTrainedModel._can_record_outputs or {}),
        "router_logits": OutputRecorder(MoeRouter, index=0),
    }


class MoeViTModel(MoeViTPreTrainedModel, ViTModel):
    """`ViTModel` without pooler, its FFNs replaced where `config.has_moe`."""

    def __init__(self, config: MoeViTConfig):
        super().__init__(config, add_pooling_layer=False)
        for index, layer in enumerate(self.layers):
            if config.has_moe(index):
                layer.mlp = MoeBlock(config)
        self.post_init()


class MoeViTForImageClassification(MoeViTPreTrainedModel, ViTForImageClassification):
    """`ViTForImageClassification` with a Mixture of Experts in every layer of `config.moe_layers`."""

    def __init__(self, config: MoeViTConfig):
        super(ViTForImageClassification, self).__init__(config)  # its own constructor would build the dense model
        self.vit = MoeViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeImageClassifierOutput:
        """As `ViTForImageClassification.forward`; with router logits the loss includes the load-balancing loss."""
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.vit(pixel_values, output_router_logits=output_router_logits, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        router_logits = outputs.get("router_logits")
        aux_loss = load_balancing_loss(self.config, router_logits)
        if loss is not None and aux_loss is not None:
            loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            aux_loss=aux_loss,
            router_logits=router_logits,
        )
