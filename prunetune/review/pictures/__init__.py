"""Which tokens of a picture are kept."""
