"""Register one head to another with the Pydra tasks.

    python examples/register_one_pair.py FIXED.nii.gz MOVING.nii.gz OUT_DIR [--skull-stripped]

Run it twice: the second time every result comes from the cache in OUT_DIR/cache.
"""

import shutil
import sys
from pathlib import Path

from nio_pydra.tasks import AffineAlign, Prepare, Register

fixed, moving, out = (Path(argument).resolve() for argument in sys.argv[1:4])
cache = out / "cache"
stripped = "--skull-stripped" in sys.argv


def brain(image: Path) -> Path:
    """Return the brain mask of an image."""
    return Prepare(image=image, skull_stripped=stripped)(cache_root=cache).mask


pair = {"fixed": fixed, "moving": moving, "fixed_mask": brain(fixed), "moving_mask": brain(moving)}
aligned = AffineAlign(**pair)(cache_root=cache)
registered = Register(
    **pair,
    affine=aligned.affine,
    affine_record=aligned.record,
    engine="nio_m",
    preset="draft",
)(cache_root=cache)

for file in (registered.forward_xfm, registered.inverse_xfm, registered.warped, registered.record):
    print(shutil.copy(file, out))
