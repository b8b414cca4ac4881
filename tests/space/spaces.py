"""Spaces of a model that can give all scorers, and the names of their parameters."""

from prunetune.budget import ModelFacts
from prunetune.scorers import SCORERS
from prunetune.space.space import Space
from prunetune.spec import SpaceSpec

GIVEN = (*SCORERS, "text_relevance")
PLAIN = {"selectors": ("top",), "mass": (0.0,), "per_crop": (False,)}


def space(keep=0.25, num_layers=16, scorers=GIVEN, model_type="llava_next", **spec):
    facts = ModelFacts(model_type, num_layers, 128, 512, 4, 4, 32, 336.0, 20.0, scorers=scorers)
    return Space(SpaceSpec(**spec), keep, facts)


def names(found):
    return [dimension.name for dimension in found.dimensions()]
