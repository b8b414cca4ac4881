"""Optuna's dashboard with what people need to judge a trial."""
