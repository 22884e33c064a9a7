"""Pydra tasks: each calls one function of the engines on files.

Their images can be in any format that nibabel reads, so inputs are `File`: the types of fileformats.medimage refuse
.mgz, .hdr with .img, and names in capitals, and for an empty or damaged .nii.gz they raise their own error instead of
ours. Outputs have these types, because nio_pydra writes them itself.

Two rules hold for all of them.

- pydra's cache key of a task holds the task's own source and its inputs, but not the code that the task calls. So each
  task has an input `version`; another version computes anew. Its default is `tasks.inputs.code_version`.
- The key holds the content of files but not their names. So no task reads anything from a name. `Sink` gets the names
  of outputs as an input.
"""

from nio_pydra.tasks.affine_align import AffineAlign
from nio_pydra.tasks.conform_mask import ConformMask
from nio_pydra.tasks.draw_figures import DrawFigures
from nio_pydra.tasks.map_volume_change import MapVolumeChange
from nio_pydra.tasks.prepare import Prepare
from nio_pydra.tasks.propagate_labels import PropagateLabels
from nio_pydra.tasks.register import Register
from nio_pydra.tasks.score_labels import ScoreLabels
from nio_pydra.tasks.sink import Sink

__all__ = [
    "AffineAlign", "ConformMask", "DrawFigures", "MapVolumeChange", "Prepare", "PropagateLabels", "Register",
    "ScoreLabels", "Sink",
]  # fmt: skip
