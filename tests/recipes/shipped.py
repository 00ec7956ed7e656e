"""Every shipped recipe, read once for all tests of a process."""

from functools import cache

from perdure import recipe

NAMES = recipe.shipped()
load = cache(recipe.load)
