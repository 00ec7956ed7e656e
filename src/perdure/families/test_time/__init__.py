"""Adapting to one unlabelled test image at a time: views, losses, and episodes over prompts or the image encoder.

An episode starts from the same weights for every image: adapt to its views, answer, forget. Nothing here knows
where images come from or what a method is called.
"""
