"""Variants of a recipe over seeds, from one file: what helps, by how much, and how sure that is.

    data = "photos"                      # a folder as for `sccam train`, relative to this file
    config = "photos"                    # what every variant starts from: a built-in name or a TOML file
    seeds = [0, 1, 2, 3, 4]
    baseline = "plain"                   # what the others are compared with
    ceiling = "plain"                    # this variant's segmenter, trained on true masks; true takes the baseline's

    [variants]
    plain = ["classify.rounds=0", "classify.epochs=[48]"]
    three-clusters = []
    ten-clusters = ["cluster.k=10"]

Stages that two variants share (the same settings, data and seed up to there) are computed once. OUT/runs/VARIANT/seedN
is a whole run, as `sccam train` leaves it; a killed ablation goes on where it stopped, by the same command. A figure
is of the last epoch; none chooses a checkpoint, and thresholds are those that a run chooses from its images alone, but
in the rows called fixed and oracle.
"""

from __future__ import annotations

from sccam.ablation.plan import Ablation, read_ablation, run_folder
from sccam.ablation.runs import ablate
from sccam.ablation.summary import summary, table

__all__ = ["Ablation", "ablate", "read_ablation", "run_folder", "summary", "table"]
