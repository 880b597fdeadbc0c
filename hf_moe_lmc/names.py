"""Names that options are chosen from. Imports nothing heavy, so the command line can offer them before torch loads."""

from typing import Literal

ExpertOrder = Literal["auto", "joint", "gate", "gram", "units", "none"]
"""Ways to match experts; see `hf_moe_lmc.matching.match_experts`. "units" matches units only, "none" nothing."""

Layout = Literal["kept", "original", "fused"]
"""Keys and shards of a written checkpoint: those of the input, those that Transformers saves, or module names."""

Vocabulary = Literal["common", "union"]
"""Tokens of a merge of models with other numbers of them: those that all have, or all of the largest."""

Repair = Literal["norms", "gram", "moments", "rescale", "router"]
"""Repairs of an average; see `hf_moe_lmc.merging.REPAIRS`."""

Variant = Literal["naive", "random", "units", "aligned", "pick", "reference_experts", "other_experts"]
"""Paths between two models, controls included; see `hf_moe_lmc.connectivity.VARIANTS`."""

MoeVariant = Literal["dense", "sparse", "shared"]
"""Ways to combine experts in the paper's models; see `hf_moe_lmc.modeling.MoeFields`."""

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
"""Dtypes that a checkpoint can be written in."""

Quantisation = Literal["fp8"]
"""Formats that weights can be quantised to when they are written; see `hf_moe_lmc.checkpoints.quantised`."""
