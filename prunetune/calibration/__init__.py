"""Calibration samples: where they come from, how they are split, and how they reach a model."""

from prunetune.calibration.answers import (
    answer_ids,
    end_ids,
    exact_answer,
    generated,
    gives_answer,
    greedy_answer,
    same_tokens,
)
from prunetune.calibration.collate import batches_by_length, encode, without_refused
from prunetune.calibration.dataset import CalibrationSet, Sample
from prunetune.calibration.matching import answers_match, normalise_answer
from prunetune.calibration.sides import load_calibration, load_sides

__all__ = [
    "CalibrationSet",
    "Sample",
    "answer_ids",
    "answers_match",
    "batches_by_length",
    "encode",
    "end_ids",
    "exact_answer",
    "generated",
    "gives_answer",
    "greedy_answer",
    "load_calibration",
    "load_sides",
    "normalise_answer",
    "same_tokens",
    "without_refused",
]
