"""Files of people and of other programs, and places to write to, taken with care.

Knows text, JSON, YAML, pickles and paths as they can come. Does not know what any of them means here.
"""
