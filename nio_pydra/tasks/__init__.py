"""Pydra tasks: each calls one function of the engines on files.

Two rules hold in every one of them. pydra's cache key of a task is its own source, the content of its input files
and the other inputs, not the code that it calls; so each takes a `version`, and a new version computes anew. And
the key ignores the names of files; so no task reads anything from a name, and only the sink, which is told the
names, writes them.
"""

from nio_pydra.tasks.affine_align import AffineAlign
from nio_pydra.tasks.prepare import Prepare
from nio_pydra.tasks.propagate_labels import PropagateLabels
from nio_pydra.tasks.register import Register
from nio_pydra.tasks.score import Score
from nio_pydra.tasks.sink import Sink

__all__ = ["AffineAlign", "Prepare", "PropagateLabels", "Register", "Score", "Sink"]
