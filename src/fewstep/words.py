"""Numbers as people read them."""

from __future__ import annotations

import math


def seconds_in_words(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def with_error(value: float | None, error: float | None = None) -> str:
    """`12.3 ± 0.4`: the error with two digits, the value to the same place; four digits where no error is known."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"
