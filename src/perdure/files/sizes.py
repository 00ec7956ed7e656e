"""Bytes in words."""

from __future__ import annotations


def in_words(number: int) -> str:
    """In the unit that fits: ``in_words(2048) == "2 KiB"``."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(max(number, 1).bit_length() // 10, len(units) - 1)
    return f"{number / 1024**power:.3g} {units[power]}"
