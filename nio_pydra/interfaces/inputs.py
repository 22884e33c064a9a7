"""Inputs that the interfaces share, and the memory that a node needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, isdefined, traits
from nipype.utils.ram_estimator import RamEstimator

from nio_pydra.engines.names import ENGINES, LARGEST_SEED
from nio_pydra.system.cores import default_threads

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime, ScanFiles
    from nio_pydra.engines.methods import Method

__all__ = ["EngineInputSpec", "PredictedMemory", "optional_path"]

LEAST_GB = 2.0
"""Memory for the steps before the registration, which the engines do not predict."""


class EngineInputSpec(BaseInterfaceInputSpec):
    """Engine, its settings, and the computation."""

    engine = traits.Enum(*ENGINES, usedefault=True, desc="registration engine")
    preset = traits.Str(desc="preset of the engine (default: its first)")
    weights = File(exists=True, desc="network weights (default: those of the package)")
    device = traits.Enum("auto", "cpu", "cuda", usedefault=True, desc="where the engine runs")
    precision = traits.Enum("auto", "float32", usedefault=True, desc="auto: bfloat16 where that is faster")
    num_threads = traits.Int(
        usedefault=True, nohash=True, desc="processor threads (default, and 0: OMP_NUM_THREADS, else all cores)"
    )
    random_seed = traits.Range(0, LARGEST_SEED, 0, usedefault=True, desc="random seed")

    def _num_threads_default(self) -> int:
        return default_threads()

    def _num_threads_changed(self, threads: int) -> None:
        # nipype counts the processors of a node by this number, so that it would take 0 for none.
        if threads == 0:
            self.num_threads = default_threads()

    def fixed_files(self) -> ScanFiles:
        """Return the image to align to, and its masks."""
        raise NotImplementedError

    def method(self) -> Method:
        """Return the engine with its settings."""
        raise NotImplementedError

    def runtime(self) -> Runtime:
        """Return device, precision, threads and seed."""
        from nio_pydra.engines.contract import Runtime

        return Runtime(device=self.device, precision=self.precision, threads=self.num_threads, seed=self.random_seed)


class PredictedMemory(RamEstimator):  # type: ignore[misc]
    """Memory that a registration is predicted to need, for the scheduler of nipype's MultiProc plugin.

    nipype takes 0.2 GB for every node that does not say more.

    Examples
    --------
    >>> from nipype.pipeline.engine import Node
    >>> from nio_pydra.interfaces import NIORegistration, PredictedMemory
    >>> register = Node(NIORegistration(preset="fast"), name="register")
    >>> register.ram_estimator = PredictedMemory()
    """

    def __call__(self, inputs: EngineInputSpec) -> tuple[float, str]:
        """Return the memory in GB, and how it was found."""
        try:
            predicted = _predicted_gb(inputs.fixed_files(), inputs.method(), inputs.runtime())
        except Exception as error:  # the node will fail with it, but must not end the scheduler
            return LEAST_GB, f"cannot be predicted: {error}"
        return max(LEAST_GB, predicted), f"predicted for {inputs.engine}: {predicted:.1f} GB, at least {LEAST_GB}"


def optional_path(value: Any) -> Path | None:
    """Return the path of an input, or None where it is not set."""
    return Path(value) if isdefined(value) else None


@cache
def _predicted_gb(fixed: ScanFiles, method: Method, runtime: Runtime) -> float:
    """Return the predicted memory in GB; 0 where the engine predicts none."""
    from nio_pydra.engines.chain import predicted_memory
    from nio_pydra.system.forks import in_own_process

    # In a process of its own, because nipype's plugin may fork this one.
    memory = in_own_process(predicted_memory, fixed, method, runtime)
    return 0.0 if memory is None else memory.process / 2**10
