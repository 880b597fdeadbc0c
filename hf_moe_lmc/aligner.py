"""The face: two models, their alignment, and all that is done with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .alignment import (
    Alignment,
    AlignmentConfig,
    LoadOptions,
    OutputOptions,
    Resources,
    align_opened,
    check_pair,
    load_model,
    merge,
    merge_opened,
    open_model,
)
from .alignment.opened_model import Model, OpenedModel
from .alignment.processes import processes
from .checkpoints import HubOptions
from .connectivity import CalibratedRepairs, PathReport, calibrate_repairs, evaluate_path
from .connectivity.repairs import Repair
from .hub import check_token, push_folder, write_card
from .matching import ExpertOrder
from .verification import Verification


@dataclass(frozen=True)
class MoeAligner:
    """Two Mixture-of-Experts models of one class, checked to fit; made by `from_pretrained`.

    Args:
        reference: stays as it is; t = 0 of every path.
        other: gets aligned; t = 1.
        differences: of their configurations and vocabularies, all without harm, in words.
    """

    reference: OpenedModel
    other: OpenedModel
    differences: tuple[str, ...]

    @classmethod
    def from_pretrained(
        cls,
        reference: Model,
        other: Model,
        reference_options: HubOptions | None = None,
        other_options: HubOptions | None = None,
    ) -> "MoeAligner":
        """Open and compare two models: folders, repositories on the Hub (`org/model@revision`), or live models.

        Of checkpoints only headers are read.

        Args:
            reference, other: of any class of Transformers that holds known Mixture-of-Experts layers.
            reference_options, other_options: revision, subfolder, token, cache_dir, local_files_only.

        Raises:
            IncompatiblePairError: the two do not compute the same function of their weights; every difference is named.
            BadInputError, UnsupportedArchitectureError, HubError: one of them cannot be used.
        """
        first, second = open_model(reference, reference_options), open_model(other, other_options)
        return cls(first, second, tuple(check_pair(first, second)))

    def align(
        self, config: AlignmentConfig | ExpertOrder | None = None, resources: Resources | None = None
    ) -> Alignment:
        """What brings `other` closest to `reference`; see `hf_moe_lmc.align`."""
        return align_opened(self.reference, self.other, config, resources=resources)

    def merge(
        self,
        alignment: Alignment | None = None,
        t: float = 0.5,
        output: str | Path | None = None,
        options: OutputOptions | None = None,
        load: LoadOptions | None = None,
        keep_norms: bool = False,
        repairs: Sequence[Repair] | Literal["auto"] = (),
        calibration: Iterable[Mapping[str, Tensor]] = (),
    ) -> PreTrainedModel:
        """The model `(1 - t) reference + t (alignment . other)`.

        Args:
            alignment: what `align` found; None aligns first.
            t: in [0, 1].
            output: a new folder, which gets a card too; checkpoints are then merged as a stream, whatever their size,
                and only the result is loaded. None merges in memory.
            options: how the folder is written.
            load: dtype, device_map and the like of the model that is returned.
            keep_norms: give units and router rows the norms back that averaging takes from them.
            repairs: repairs on calibration data, one after the other, instead of `keep_norms`; "auto" chooses them. See
                `hf_moe_lmc.connectivity.calibrate_repairs`. One model is loaded for them.
            calibration: the batches for that, the same as `evaluate` was given, never those that it evaluated on.

        Raises:
            BadInputError: `t` is outside [0, 1], or there is too little calibration data.
            IncompatiblePairError: the alignment was made for other models.
            OutputError: the folder may not be written.
        """
        found = alignment or self.align()

        def calibrated(model: PreTrainedModel) -> CalibratedRepairs:
            return calibrate_repairs(model, self.other.tensors, found, (t,), repairs, calibration)

        if output is None:
            first, second = load_model(self.reference, load), load_model(self.other, load)
            return merge(first, second, found, t, keep_norms, calibrated(first) if repairs else None)
        repaired = calibrated(load_model(self.reference, load)) if repairs else None
        merge_opened(self.reference, self.other, output, found, t, options, keep_norms=keep_norms, repaired=repaired)
        if processes().is_main_process:
            write_card(output, found)
        processes().wait_for_everyone()
        return load_model(open_model(output), load)

    def push_to_hub(
        self,
        repository: str,
        output: str | Path,
        alignment: Alignment | None = None,
        t: float = 0.5,
        options: OutputOptions | None = None,
        keep_norms: bool = False,
        report: PathReport | None = None,
        verification: Verification | None = None,
        dataset: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        licence: str | None = None,
        token: str | None = None,
    ) -> str:
        """Merge two checkpoints into a folder, write its card, and send it to the Hub in one commit.

        The token is checked before the work. Whatever fails afterwards, nothing is committed, the folder stays, and the
        error says how to send it. In one process; after a merge by several, use `hf_moe_lmc.hub.push_folder`.

        Args:
            repository: `name` or `organisation/name`.
            output, alignment, t, options, keep_norms: as for `merge`.
            report, verification, dataset: for the card; see `hf_moe_lmc.hub.write_card`.
            private, create_pr, licence, token: see `hf_moe_lmc.hub.push_folder`.

        Returns:
            Address of the commit or of the pull request.

        Raises:
            As `merge` and `hf_moe_lmc.hub.push_folder`.
        """
        check_token(repository, token)
        found = alignment or self.align()
        merge_opened(self.reference, self.other, output, found, t, options, keep_norms=keep_norms)
        write_card(output, found, report, verification, dataset, licence, token)
        return push_folder(output, repository, private, create_pr, licence, token)

    def evaluate(
        self,
        alignment: Alignment | None,
        data: DataLoader[Any],
        t: int | Sequence[float] = 25,
        load: LoadOptions | None = None,
        **keywords: Any,
    ) -> PathReport:
        """Loss, accuracy and routing along the path, naive, aligned and in controls; see `evaluate_path`.

        Of two checkpoints one is loaded, the other read tensor by tensor.

        Args:
            alignment: what `align` found; None aligns first.
            data: batches of the model's arguments and `labels`.
            t: number of points, or the points.
            load: dtype, device_map and the like of the model that is evaluated.
            keywords: further arguments of `hf_moe_lmc.connectivity.evaluate_path`.
        """
        model = load_model(self.reference, load)
        return evaluate_path(model, self.other.tensors, alignment or self.align(), data, t, **keywords)


def from_aligned_pretrained(
    name: Model,
    align_to: Model,
    t: float = 1.0,
    config: AlignmentConfig | ExpertOrder | None = None,
    load: LoadOptions | None = None,
    options: HubOptions | None = None,
    align_to_options: HubOptions | None = None,
) -> PreTrainedModel:
    """`from_pretrained(name)`, aligned to another model; with `t` < 1 on the line between the two.

    Args:
        name: a folder, a repository on the Hub, or a live model, which is not changed.
        align_to: the reference, t = 0.
        t: 1 is `name` itself, rewritten: it computes what it computed.
        config: how to align.
        load: dtype, device_map and the like.
        options, align_to_options: revision, subfolder, token, cache_dir, local_files_only of either model.

    Raises:
        As `MoeAligner.from_pretrained` and `MoeAligner.merge`.
    """
    aligner = MoeAligner.from_pretrained(align_to, name, align_to_options, options)
    return aligner.merge(aligner.align(config), t, load=load)
