"""The command lines: `nio-pydra` for BIDS datasets, `nio` for everything else."""

import os

# Read by OpenMP when torch is loaded. Threads that wait actively take the cores from whatever runs beside them; on a
# busy machine a registration then takes several times the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
