"""Figures of matplotlib without pyplot, which keeps figures and chooses a backend for the whole process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure"]


def new_figure(width: float, height: float, colour: str, dpi: float = 100.0) -> Figure:
    """Return an empty figure of a size in inches and a background colour, ready to be drawn and saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=colour)
    FigureCanvasAgg(figure)
    return figure
