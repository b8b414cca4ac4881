"""How far a config moves each sample's answer: runs models, knows no Optuna."""
