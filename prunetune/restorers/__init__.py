"""Restorers: put information of dropped tokens back.

A new restorer is one file in this folder and one line in the table below.
"""

from prunetune.registry import Registry
from prunetune.restorers.base import Restorer

RESTORERS: Registry[Restorer] = Registry(
    "restorer",
    "prunetune.restorers.base:Restorer",
    {
        "grid_recycling": "prunetune.restorers.grid_recycling:GridRecycling",
        "similarity_merge": "prunetune.restorers.similarity_merge:SimilarityMerge",
        "uniform_recovery": "prunetune.restorers.uniform_recovery:UniformRecovery",
        "cell_mean": "prunetune.restorers.cell_mean:CellMean",
    },
)

__all__ = ["RESTORERS", "Restorer"]
