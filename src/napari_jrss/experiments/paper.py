"""The paper's own figures (Tables 1 and 2, N = 5), for experiments that repeat its protocol."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.resources import files

LABELLED = 5
"""N of the paper's figures."""


def paper_dice(paper: str | None, task: str) -> Mapping[str, str]:
    """Mean Dice and its standard deviation by method, as the paper prints them.

    Parameters
    ----------
    paper
        ``lpba40`` or ``tcia``; None, for other data, gives no figures.
    task
        ``segmentation`` or ``registration``.
    """
    with (files("napari_jrss.experiments") / "paper.csv").open(encoding="utf-8") as file:
        return {
            row["method"]: f"{row['dice']} ({row['std']})"
            for row in csv.DictReader(file)
            if (row["paper"], row["task"]) == (paper, task)
        }
