"""What a schedule costs, what bounds it, and how any config is moved onto a budget."""

from prunetune.budget.bounds import (
    FLOOR,
    KINDS,
    Budget,
    Kind,
    as_budget,
    check_keep,
    latest_first_layer,
    least_keep,
    make_budget,
)
from prunetune.budget.costs import (
    ModelFacts,
    facts_of,
    flops_ratio,
    kv_ratio,
    mean_retention,
    retention_by_layer,
)
from prunetune.budget.levels import (
    FULL,
    Level,
    candidates,
    distinct,
    fitting,
    largest_fitting,
    stated_retention,
)
from prunetune.budget.moving import every_for, rebudget, restored_part, rounded, weakened

__all__ = [
    "FLOOR",
    "FULL",
    "KINDS",
    "Budget",
    "Kind",
    "Level",
    "ModelFacts",
    "as_budget",
    "candidates",
    "check_keep",
    "distinct",
    "every_for",
    "facts_of",
    "fitting",
    "flops_ratio",
    "kv_ratio",
    "largest_fitting",
    "latest_first_layer",
    "least_keep",
    "make_budget",
    "mean_retention",
    "rebudget",
    "restored_part",
    "retention_by_layer",
    "rounded",
    "stated_retention",
    "weakened",
]
