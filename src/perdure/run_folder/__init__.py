"""A run's folder: what its files hold, who is at work in it, and its log.

Knows the files that a run leaves and their schemas. Does not know how a run goes, nor the resume points' tensors
(`perdure.checkpoint`).
"""
