"""Parts of methods that see and hear: paired towers, adapters between them, prompts, heads and losses.

Functions and layers only: models are handed in. Knows no tasks, no loops, no files. Equations are numbered as in the
sections of the PHP specification (docs/methods/audio_visual.md).
"""
