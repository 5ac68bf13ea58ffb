"""The paper's own figures (Tables 1 to 3), for experiments that repeat its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperFigures:
    """Dice, mean and standard deviation, by method; empty where nothing is comparable."""

    labelled: int = 5
    segmentation: Mapping[str, str] = field(default_factory=dict)
    registration: Mapping[str, str] = field(default_factory=dict)

    def comparison(self, task: str) -> Mapping[str, str]:
        """Of a task at N = 5."""
        return self.segmentation if task == "segmentation" else self.registration


PAPER: Mapping[str | None, PaperFigures] = {
    None: PaperFigures(),
    "lpba40": PaperFigures(
        segmentation={
            "vm_unet": "0.671 (0.125)",
            "deep_atlas": "0.683 (0.149)",
            "rsegnet": "0.726 (0.133)",
            "mono": "0.679 (0.138)",
            "jrss": "0.795 (0.126)",
        },
        registration={
            "initial": "0.576 (0.162)",
            "syn": "0.765 (0.126)",
            "voxelmorph": "0.727 (0.134)",
            "pdd_net": "0.711 (0.129)",
            "deep_atlas": "0.702 (0.123)",
            "rsegnet": "0.724 (0.114)",
            "mono": "0.721 (0.133)",
            "jrss": "0.759 (0.130)",
        },
    ),
    "tcia": PaperFigures(
        segmentation={
            "vm_unet": "0.642 (0.144)",
            "deep_atlas": "0.669 (0.172)",
            "rsegnet": "0.701 (0.167)",
            "mono": "0.644 (0.140)",
            "jrss": "0.753 (0.151)",
        },
        registration={
            "initial": "0.332 (0.258)",
            "syn": "0.561 (0.169)",
            "voxelmorph": "0.453 (0.278)",
            "pdd_net": "0.468 (0.167)",
            "deep_atlas": "0.460 (0.221)",
            "rsegnet": "0.472 (0.144)",
            "mono": "0.459 (0.179)",
            "jrss": "0.539 (0.174)",
        },
    ),
}
"""By the name that a protocol gives in ``paper``."""
