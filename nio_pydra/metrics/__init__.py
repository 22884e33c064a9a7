"""Measures of the quality of a registration."""

from nio_pydra.metrics.landmarks import TargetRegistrationError, landmark_errors
from nio_pydra.metrics.overlap import dice, mean_of_lowest
from nio_pydra.metrics.regularity import (
    Regularity,
    jacobian_determinant,
    regularity,
    round_trip_error,
    volume_factor,
)
from nio_pydra.metrics.similarity import local_similarity
from nio_pydra.metrics.surface import hausdorff_95

__all__ = [
    "Regularity", "TargetRegistrationError", "dice", "hausdorff_95", "jacobian_determinant", "landmark_errors",
    "local_similarity", "mean_of_lowest", "regularity", "round_trip_error", "volume_factor",
]  # fmt: skip
