"""Numbers as text: short, with the digits that matter."""

from __future__ import annotations

import math

MISSING = "-"


def number(value: float) -> str:
    """Three significant digits; `nan` and `inf` show as what they are."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:  # noqa: PLR2004  outside of it powers of ten read better
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"  # noqa: PLR2004  rounds up
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def number_if_any(value: float) -> str:
    """As `number`; `-` where nan only says that there is none."""
    return MISSING if math.isnan(value) else number(value)


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return MISSING if math.isnan(value) else f"{100 * value:.1f} %"


def whole(value: float) -> str:
    """A whole number; `-` where it does not apply."""
    return MISSING if math.isnan(value) else f"{value:.0f}"
