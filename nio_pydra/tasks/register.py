"""Task: registration of two images by one engine."""

import json
from pathlib import Path

from fileformats.application import Json
from fileformats.generic import File
from fileformats.medimage import NiftiGz
from pydra.compose import python

from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.tasks.inputs import CODE_VERSION, scan_files, task_runtime


@python.define(outputs=["forward_xfm", "inverse_xfm", "warped", "record"])
def Register(
    fixed: File,
    moving: File,
    affine: File,
    affine_record: File | None = None,
    engine: str = DEFAULT_ENGINE,
    preset: str | None = None,
    settings: dict | None = None,
    version: str = CODE_VERSION,
    weights: File | None = None,
    fixed_mask: File | None = None,
    moving_mask: File | None = None,
    lesion_mask: File | None = None,
    profile: str = "brain",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> tuple[File, File, NiftiGz, Json]:
    """Register a moving image to a fixed one, starting from their affine alignment.

    Parameters
    ----------
    fixed : File
        Image to align to.
    moving : File
        Image to be aligned.
    affine : File
        ITK composite .h5 with one affine, or .mat as ANTs writes it, fixed to moving points.
    affine_record : File | None
        JSON of the affine alignment. Its time and number of starts go into the record.
    engine : str
        Name of the engine, as `nio engines` lists it.
    preset : str | None
        Preset of the engine. Default: that of the profile, or the engine's first.
    settings : dict | None
        Settings that differ from the preset's.
    version : str
        Version of the code that this task calls. Workflows add the engine's fingerprint.
    weights : File | None
        Network weights. Default: those of the package.
    fixed_mask : File | None
        Mask of the object on the fixed grid.
    moving_mask : File | None
        Mask of the object on the moving grid.
    lesion_mask : File | None
        Region of the moving image without a counterpart in the fixed one, on its grid.
    profile : str
        What the images show, by its name in nio_pydra.profiles.PROFILES.
    device : str
        One of auto, cpu and cuda.
    precision : str
        One of auto and float32.
    seed : int
        Random seed.

    Returns
    -------
    forward_xfm : File
        ITK composite .h5, fixed to moving points.
    inverse_xfm : File
        ITK composite .h5, moving to fixed points.
    warped : NiftiGz
        Moving image on the fixed grid.
    record : Json
        Settings, time, memory and measures of quality.
    """
    from nio_pydra.engines.methods import choose_method, usual_preset
    from nio_pydra.engines.registration import register
    from nio_pydra.profiles import PROFILES

    results = register(
        scan_files(fixed, mask=fixed_mask),
        scan_files(moving, mask=moving_mask, lesion_mask=lesion_mask),
        Path(affine),
        Path.cwd(),
        choose_method(
            engine,
            preset or usual_preset(engine, PROFILES[profile]),
            weights=None if weights is None else Path(weights),
            changes=settings,
        ),
        affine_record=None if affine_record is None else json.loads(Path(affine_record).read_text()),
        profile=PROFILES[profile],
        runtime=task_runtime(device, seed, precision),
    )
    return results.forward_xfm, results.inverse_xfm, results.warped, results.record
