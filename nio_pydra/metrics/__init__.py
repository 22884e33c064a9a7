"""How good a registration is."""

from nio_pydra.metrics.overlap import dice, mean_of_lowest
from nio_pydra.metrics.regularity import Regularity, inverse_error, jacobian_determinant, regularity

__all__ = ["Regularity", "dice", "inverse_error", "jacobian_determinant", "mean_of_lowest", "regularity"]
