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
from prunetune.budget.moving import every_for, rebudget, restored_part, rounded, weakened
from prunetune.budget.prefill import (
    Flops,
    flops_record,
    flops_told,
    prefill_flops,
    resized,
    tower_flops,
)

__all__ = [
    "FLOOR",
    "KINDS",
    "Budget",
    "Flops",
    "Kind",
    "ModelFacts",
    "as_budget",
    "check_keep",
    "every_for",
    "facts_of",
    "flops_ratio",
    "flops_record",
    "flops_told",
    "kv_ratio",
    "latest_first_layer",
    "least_keep",
    "make_budget",
    "mean_retention",
    "prefill_flops",
    "rebudget",
    "resized",
    "restored_part",
    "retention_by_layer",
    "rounded",
    "tower_flops",
    "weakened",
]
