"""Tuning of a multimodal language model by low-rank updates, task after task."""
