"""The tasks of nio_pydra where users of Pydra look for tasks, and the workflow of one scan.

>>> from pydra.tasks.nio import AffineAlign, Prepare, Register
>>> Register.__module__
'nio_pydra.tasks.register'

`pydra` and `pydra.tasks` are namespaces that many packages share, so these folders hold no `__init__.py`.
"""

from nio_pydra.tasks import AffineAlign, Prepare, PropagateLabels, Register, ScoreLabels, Sink
from nio_pydra.version import version
from nio_pydra.workflows.subject import Subject

__version__ = version()

__all__ = ["AffineAlign", "Prepare", "PropagateLabels", "Register", "ScoreLabels", "Sink", "Subject"]
