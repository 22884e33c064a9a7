"""Pictures of results."""

from nio_pydra.report.alignment import Comparison, draw_comparisons

__all__ = ["Comparison", "draw_comparisons"]
