"""GPT-2 with Mixture-of-Experts layers."""

from typing import Any

from torch import Tensor, nn
from transformers import Cache, GPT2LMHeadModel, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .configuration import MoeGPT2Config
from .moe_block import MoeBlock, MoeRouter
from .moe_pretrained import MoePreTrainedModel, load_balancing_loss


class MoeGPT2PreTrainedModel(MoePreTrainedModel, GPT2PreTrainedModel):
    """`GPT2PreTrainedModel` with the configuration, initialisation and router logits of a Mixture of Experts."""

    config: MoeGPT2Config
    _can_record_outputs = {
        **(GPT2PreTrainedModel._can_record_outputs or {}),
        "router_logits": OutputRecorder(MoeRouter, index=0),
    }


class MoeGPT2Model(MoeGPT2PreTrainedModel, GPT2Model):
    """`GPT2Model`, its FFNs replaced where `config.has_moe`."""

    def __init__(self, config: MoeGPT2Config):
        super().__init__(config)
        for index, block in enumerate(self.h):
            if config.has_moe(index):
                block.mlp = MoeBlock(config, dropout=config.resid_pdrop)
        self.post_init()


class MoeGPT2LMHeadModel(MoeGPT2PreTrainedModel, GPT2LMHeadModel):
    """`GPT2LMHeadModel` with a Mixture of Experts in every layer of `config.moe_layers`."""

    def __init__(self, config: MoeGPT2Config):
        super(GPT2LMHeadModel, self).__init__(config)  # its own constructor would build the dense model
        self.transformer = MoeGPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # Transformers reads it off the class names that it knows
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As `GPT2LMHeadModel.forward`; with router logits the loss includes the load-balancing loss."""
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        router_logits = outputs.get("router_logits")
        aux_loss = load_balancing_loss(self.config, router_logits, attention_mask)
        if loss is not None and aux_loss is not None:
            loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=router_logits,
        )
