"""Selectors: each turns a stage's scores and states into the set of patches that stay.

A new selector is one file in this folder and one line in the table below.
"""

from prunetune.registry import Registry
from prunetune.selectors.base import SelectContext, Selector, shares

SELECTORS: Registry[Selector] = Registry(
    "selector",
    "prunetune.selectors.base:Selector",
    {
        "top": "prunetune.selectors.top:Top",
        "cover": "prunetune.selectors.cover:Cover",
        "dpp": "prunetune.selectors.dpp:Dpp",
        "maxmin": "prunetune.selectors.maxmin:MaxMin",
        "mmr": "prunetune.selectors.mmr:Mmr",
        "distinct": "prunetune.selectors.distinct:Distinct",
        "cells": "prunetune.selectors.cells:Cells",
        "spread": "prunetune.selectors.spread:Spread",
        "quota": "prunetune.selectors.quota:Quota",
    },
)

__all__ = ["SELECTORS", "SelectContext", "Selector", "shares"]
