"""Measures of the quality of a registration."""

from nio_pydra.metrics.overlap import dice, mean_of_lowest
from nio_pydra.metrics.regularity import Regularity, jacobian_determinant, regularity, round_trip_error
from nio_pydra.metrics.similarity import local_similarity

__all__ = [
    "Regularity", "dice", "jacobian_determinant", "local_similarity", "mean_of_lowest", "regularity",
    "round_trip_error",
]  # fmt: skip
