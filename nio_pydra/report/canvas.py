"""Grey scales, and figures of matplotlib without pyplot, which keeps them and chooses a backend for the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["grey_scale", "new_figure"]

PERCENTILES = 0.5, 99.5
"""Of an image, as the ends of its grey scale."""


def new_figure(width: float, height: float, colour: str, dpi: float = 100.0) -> Figure:
    """Return an empty figure of a size in inches and a background colour, ready to be drawn and saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=colour)
    FigureCanvasAgg(figure)
    return figure


def grey_scale(shown: NDArray[np.floating]) -> tuple[float, float]:
    """Return the values that are drawn black and white: percentiles of what is not zero, and zero if it is darker."""
    inside = shown[shown != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, PERCENTILES)
    return min(0.0, float(low)), float(high)
