"""Frame rates as exact fractions (pure)."""

from __future__ import annotations

from fractions import Fraction

from lipsync_engine.errors import ParameterError


def snap_rate(value: Fraction) -> Fraction:
    """Return the exact rate that a rounded one stands for: 29.97 becomes 30000/1001."""
    whole = max(1, round(value))
    for exact in (Fraction(whole), Fraction(max(1, round(value * Fraction(1001, 1000))) * 1000, 1001)):
        if abs(exact - value) < exact * Fraction(4, 10000):
            return exact
    return value.limit_denominator(1001)


def parse_rate(text: str) -> Fraction:
    """Parse `25`, `29.97` or `30000/1001` to the exact rate.

    Raises:
        ParameterError: the text is no number.
    """
    try:
        if len(text) > 30 or "e" in text.lower():  # an exponent can expand to gigabytes of digits
            raise ValueError
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ParameterError(
            f"fps={text!r} is not a rate: use a number such as 25, 29.97 or 30000/1001."
        ) from None
    return snap_rate(rate) if rate > 0 else rate  # `SyncParams` refuses the latter
