"""Nipype workflow: registration to templates inside sMRIPrep, fMRIPrep and pipelines made of their parts."""

from __future__ import annotations

from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline import engine as pe

from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.errors import InputError
from nio_pydra.interfaces import NIOSpatialNormalization, PredictedMemory
from nio_pydra.interfaces.inputs import LEAST_GB
from nio_pydra.version import version as nio_version

try:
    from niworkflows.engine import splice_workflow, tag
    from smriprep.workflows.fit.registration import init_register_template_wf
    from templateflow import __version__ as templateflow_version
    from templateflow.api import get_metadata
except ImportError as error:
    raise ImportError(
        f"This needs sMRIPrep 0.18 or newer, as in fMRIPrep 25.1 ({error}): run pip install 'smriprep>=0.18'."
    ) from error

if TYPE_CHECKING:
    from nio_pydra.engines.methods import Method

__all__ = ["TAG", "init_nio_register_template_wf", "use_nio"]

TAG = "anat.register-template"
"""Tag of sMRIPrep's workflow that registers to templates."""


@tag(TAG)
def init_nio_register_template_wf(
    *,
    sloppy: bool,
    omp_nthreads: int,
    templates: list[str],
    image_type: str = "T1w",
    engine: str = DEFAULT_ENGINE,
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    random_seed: int = 0,
    name: str = "register_template_wf",
) -> pe.Workflow:
    """Build sMRIPrep's workflow of the same name, with a registration by nio_pydra in the place of ANTs.

    Inputs and outputs are those of sMRIPrep's `init_register_template_wf`, which builds the workflow. Its registration
    is replaced, and what prepares images for ANTs is removed. So niworkflows' `splice_workflow` can put the
    result in the place of sMRIPrep's, under the tag `TAG`.

    Parameters
    ----------
    sloppy : bool
        Whether to take a quick preset and templates of 2 mm, to try things out.
    omp_nthreads : int
        Number of processor threads of a registration.
    templates : list of str
        Templates of TemplateFlow, as fMRIPrep writes them: ``MNI152NLin6Asym``, ``MNIInfant:cohort-1``.
    image_type : str
        Only ``T1w``.
    engine : str
        Registration engine.
    preset : str, optional
        Preset of the engine. Default: that of :func:`nio_pydra.interfaces.spatial_normalization.preset_for` for the
        flavor ``precise``, or ``testing`` if sloppy.
    settings : dict, optional
        Settings that differ from the preset's.
    weights : Path, optional
        Network weights. Default: those of the package.
    device : {"auto", "cpu", "cuda"}
        Device of the engine.
    precision : {"auto", "float32"}
        "auto" computes in bfloat16 where that is faster.
    random_seed : int
        Random seed.
    name : str
        Name of the workflow.

    Returns
    -------
    Workflow
        With `inputnode` (``moving_image``, ``moving_mask``, ``lesion_mask``; it iterates over the templates),
        `poutputnode` for each template and `outputnode` for all together (``anat2std_xfm``, ``std2anat_xfm``,
        ``template``, ``template_spec``).

    Raises
    ------
    InputError
        If the images are not T1w, or the method cannot be used here.

    Examples
    --------
    >>> from niworkflows.engine import splice_workflow
    >>> from nio_pydra.workflows.smriprep import init_nio_register_template_wf
    >>> given = {"sloppy": False, "omp_nthreads": 4, "templates": ["MNI152NLin6Asym"]}
    >>> workflow = splice_workflow(
    ...     workflow, {"anat.register-template": init_nio_register_template_wf(**given, preset="fast")}
    ... )  # doctest: +SKIP
    """
    if image_type != "T1w":
        raise InputError(f"The image type is {image_type}: expected T1w, the only images that nio_pydra is made for.")
    registration = NIOSpatialNormalization(
        engine=engine, flavor="testing" if sloppy else "precise", device=device, precision=precision,
        random_seed=random_seed,
    )  # fmt: skip
    given = {"preset": preset, "engine_settings": settings, "weights": weights and Path(weights).absolute()}
    registration.inputs.trait_set(**{key: value for key, value in given.items() if value is not None})
    method = registration.inputs.method()  # refuses what cannot be used, before the run
    method.fingerprint()

    workflow = init_register_template_wf(
        sloppy=sloppy, omp_nthreads=omp_nthreads, templates=templates, image_type=image_type, name=name
    )
    node = pe.Node(registration, name="registration", n_procs=omp_nthreads, mem_gb=LEAST_GB)
    node.ram_estimator = PredictedMemory()
    inputnode, theirs = (workflow.get_node(part) for part in ("inputnode", "registration"))
    theirs._tag = "nio.registration"
    splice_workflow(workflow, {theirs._tag: node})
    # The intensities, and the choice between T1w and T2w templates, are prepared for ANTs.
    workflow.remove_nodes(filter(None, map(workflow.get_node, ("trunc_mov", "set_reference", "tf_select"))))
    workflow.connect(inputnode, "moving_image", node, "moving_image")
    workflow.__desc__ = _description(method, templates)
    return workflow


def use_nio(workflow: pe.Workflow, **method: Any) -> list[str]:
    """Replace the registration to templates everywhere in a workflow of sMRIPrep or fMRIPrep.

    niworkflows' `splice_workflow` replaces that of one participant only, and none where participants are not connected
    to anything. So it is called on the part of each participant.

    Parameters
    ----------
    workflow : Workflow
        Workflow of any number of participants, changed in place.
    **method
        Arguments of :func:`init_nio_register_template_wf` from `engine` to `random_seed`.

    Returns
    -------
    list of str
        Templates for each registration that was replaced. Empty where there is none to replace, because all
        transforms are given as derivatives.

    Raises
    ------
    InputError
        If images to be registered are not T1w, or the method cannot be used here.
    """
    replaced = []
    names = [name.split(".") for name in workflow.list_node_names()]
    for path in dict.fromkeys(tuple(name[:depth]) for name in names for depth in range(1, len(name))):
        theirs = workflow.get_node(".".join(path))
        if getattr(theirs, "_tag", None) != TAG:
            continue
        registration, reference = (theirs.get_node(part) for part in ("registration", "set_reference"))
        templates = dict(theirs.get_node("inputnode").iterables)["template"]
        ours = init_nio_register_template_wf(
            sloppy=registration.inputs.flavor != "precise", omp_nthreads=registration.n_procs, templates=templates,
            image_type=reference.inputs.image_type if reference else "T1w", name=theirs.name, **method,
        )  # fmt: skip
        for name in ours.list_node_names():  # where crash files go, for example
            ours.get_node(name).config = deepcopy(registration.config)
        parent = workflow.get_node(".".join(path[:-1])) if len(path) > 1 else workflow
        splice_workflow(parent, {TAG: ours})
        replaced += templates
    return replaced


def _description(method: Method, templates: list[str]) -> str:
    """Return the methods text of fMRIPrep's boilerplate, in which @key cites an entry of its bibliography."""
    chosen = []
    for template in templates:
        name = template.split(":")[0]
        about = get_metadata(name)
        rrid = f", RRID:{about['RRID']}" if about.get("RRID") else ""
        chosen.append(f"*{about['Name']}* [@{name.lower()}{rrid}; TemplateFlow ID: {template}]")
    return (
        f"The T1w reference was registered to {', '.join(chosen)}, from *TemplateFlow* "
        f"[{templateflow_version}, @templateflow], by *nio_pydra* {nio_version()}. Outside the brain, both images were "
        f"set to zero. An affine alignment by ANTs (antspyx {version('antspyx')}) came first, then the engine "
        f"`{method.name}` with the preset `{method.preset}`: {method.engine.what} ({method.engine.citation}).\n"
    )
