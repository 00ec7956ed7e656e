"""Captions from an image's feature: mapper, noise, beam search, losses, and adaptation to one image.

Nothing here knows where features come from or what a method is called.
"""
