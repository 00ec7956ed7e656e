"""Captions from an image's feature: learning, answers, and adaptation to one image.

Nothing here knows where features come from or what a method is called.
"""
