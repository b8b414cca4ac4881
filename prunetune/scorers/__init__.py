"""Scorers: each gives every visual token an importance; higher is kept.

A new scorer is one file in this folder and one line in the table below.
"""

from prunetune.registry import Registry, Tunable
from prunetune.scorers.base import ScoreContext, Scorer

SCORERS: Registry[Scorer] = Registry(
    "scorer",
    "prunetune.scorers.base:Scorer",
    {
        "topv": "prunetune.scorers.topv:TopV",
        "cls_attention": "prunetune.scorers.cls_attention:ClsAttention",
        "context_entropy": "prunetune.scorers.context_entropy:ContextEntropy",
        "last_query": "prunetune.scorers.last_query:LastQuery",
        "coverage": "prunetune.scorers.coverage:Coverage",
        "tile_prior": "prunetune.scorers.tile_prior:TilePrior",
        "text_relevance": "prunetune.scorers.text_relevance:TextRelevance",
        "feature_distance": "prunetune.scorers.feature_distance:FeatureDistance",
        "token_variation": "prunetune.scorers.token_variation:TokenVariation",
        "key_norm": "prunetune.scorers.key_norm:KeyNorm",
        "random": "prunetune.scorers.random:Random",
    },
)

__all__ = ["SCORERS", "ScoreContext", "Scorer", "Tunable"]
