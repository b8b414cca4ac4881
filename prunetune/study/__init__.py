"""Optuna: a study over where, how much and with which weights to prune."""
