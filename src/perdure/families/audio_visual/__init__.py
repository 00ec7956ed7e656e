"""What methods that see and hear share: paired towers, adapters between them, prompts, heads, losses, and their loop.

Models are handed in. Nothing here knows what a method is called.
"""
