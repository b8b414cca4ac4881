"""Numbers in [0, 1] to configs that meet the budget: knows no model and no storage."""
