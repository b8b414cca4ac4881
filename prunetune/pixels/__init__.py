"""Fewer pixels: the config's field, what it means for a processor, and processors that heed it."""

from prunetune.pixels.field import AnyPixels, MaxPixels, Pixels, Share, shrinks

__all__ = ["AnyPixels", "MaxPixels", "Pixels", "Share", "shrinks"]
