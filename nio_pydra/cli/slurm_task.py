"""Task of a SLURM job array: registers one scan. The batch script of `nio_pydra.workflows.slurm_jobs` starts it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from nio_pydra.cli.errors import ended_by_signals, exit_status

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Register the scan of the given number of a run's folder; return the exit status."""
    folder, index = sys.argv[1:] if argv is None else argv
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nio_pydra").setLevel(logging.INFO)
    logging.getLogger("pydra").setLevel(logging.CRITICAL)

    def action() -> int:
        from nio_pydra.workflows.slurm_jobs import run_scan

        # SLURM ends a job by SIGTERM, and somewhat later by SIGKILL.
        with ended_by_signals("nio-pydra"):
            return run_scan(Path(folder), int(index))

    return exit_status("nio-pydra", action, [Path(folder)])


if __name__ == "__main__":
    sys.exit(main())
