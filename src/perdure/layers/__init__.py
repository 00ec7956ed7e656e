"""Layers and verbs on tensors that models and methods are made of. Knows no files, tasks or loops."""
