"""Review: what people look at before they trust a config.

Nothing is imported here: pictures need torch and a model, notes and comparisons do not.
"""
