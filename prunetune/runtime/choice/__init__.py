"""Which tokens a stage keeps: what scorers and selectors are given, and the choice itself."""
