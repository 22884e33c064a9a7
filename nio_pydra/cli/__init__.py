"""The commands: `nio-pydra` for BIDS datasets, `nio` for everything else."""

import os

# OpenMP reads this when torch is loaded. Threads that wait actively take cores from other programs. On a busy machine a
# registration then takes several times the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
