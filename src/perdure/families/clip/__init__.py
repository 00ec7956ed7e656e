"""Classifiers over a CLIP: prompts' features, training of adapters, exports, rewards."""
