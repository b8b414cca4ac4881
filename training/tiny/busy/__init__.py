"""Busy pictures: the harder kind, with clutter that looks like the objects asked about."""
