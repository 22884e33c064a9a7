"""Workflow: one scan, from its file to its derivatives."""

from typing import Any

from fileformats.generic import File
from pydra.compose import workflow

from nio_pydra.bids.products import PRODUCTS
from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.tasks import (
    AffineAlign,
    ConformMask,
    DrawFigures,
    MapVolumeChange,
    Prepare,
    PropagateLabels,
    Register,
    ScoreLabels,
    Sink,
)
from nio_pydra.tasks.inputs import CODE_VERSION
from nio_pydra.tasks.sink import product_fields


@workflow.define(outputs={**product_fields(workflow.out), "files": list[str]})
def Subject(
    scan: File,
    atlas: File,
    atlas_mask: File,
    destination: dict,
    skull_stripped: bool = False,
    engine: str = DEFAULT_ENGINE,
    preset: str | None = None,
    method_version: str = CODE_VERSION,
    mask: File | None = None,
    lesion_mask: File | None = None,
    own_labels: File | None = None,
    labels_of_atlas: File | None = None,
    conformed_mask: bool = False,
    jacobian: bool = False,
    figures: bool = True,
    settings: dict | None = None,
    profile: str = "brain",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
):
    """Align a scan to the atlas: mask, affine, registration, labels in both directions, score, figures, sink.

    Parameters
    ----------
    scan : File
        Image to be aligned.
    atlas : File
        Atlas image.
    atlas_mask : File
        Mask of the object on the atlas's grid.
    destination : dict
        Fields of nio_pydra.bids.products.Destination.
    skull_stripped : bool
        Whether the scan is zero outside the object.
    engine : str
        Name of the registration engine.
    preset : str | None
        Preset of the engine. Default: the engine's first.
    method_version : str
        Version of the code, with the fingerprint of the engine.
    mask : File | None
        Mask of the object in the scan. None: it is made.
    lesion_mask : File | None
        Mask of the lesion in the scan.
    own_labels : File | None
        Label image of the scan.
    labels_of_atlas : File | None
        Label image of the atlas.
    conformed_mask : bool
        Whether the mask is also written with its axes in the order RAS.
    jacobian : bool
        Whether the map of the volume change is written.
    figures : bool
        Whether figures are drawn, and the page of the participant is written.
    settings : dict | None
        Settings that differ from the preset's.
    profile : str
        What is registered, by its name in nio_pydra.profiles.PROFILES.
    device : str
        One of auto, cpu and cuda.
    precision : str
        One of auto and float32.
    seed : int
        Random seed.

    Returns
    -------
    products : File | None
        A file for each row of nio_pydra.bids.products.PRODUCTS, in that order.
    files : list[str]
        Paths of the files that the sink wrote.
    """
    given = {"skull_stripped": skull_stripped, "mask": mask, "labels": own_labels, "lesion_mask": lesion_mask}
    masked, aligned, pair = add_alignment(scan, (atlas, atlas_mask), given, profile=profile, device=device, seed=seed)
    registered = workflow.add(
        Register(
            **pair,
            affine=aligned.affine,
            affine_record=aligned.record,
            engine=engine,
            preset=preset,
            settings=settings,
            device=device,
            precision=precision,
            version=method_version,
        )
    )
    record, labels, atlas_labels = registered.record, None, None
    if own_labels is not None:
        to_atlas = PropagateLabels(labels=own_labels, reference=atlas, transform=registered.forward_xfm)
        labels = workflow.add(to_atlas, name="LabelsToAtlas").propagated
        if labels_of_atlas is not None:
            score = ScoreLabels(
                record=record, fixed_labels=labels_of_atlas, propagated_labels=labels, moving_labels=own_labels
            )
            record = workflow.add(score).record
    if labels_of_atlas is not None:
        to_subject = PropagateLabels(labels=labels_of_atlas, reference=scan, transform=registered.inverse_xfm)
        atlas_labels = workflow.add(to_subject, name="LabelsToSubject").propagated
    volume_change = None
    if jacobian:
        volume_change = workflow.add(MapVolumeChange(transform=registered.forward_xfm, reference=atlas)).jacobian
    drawn = None
    if figures:
        drawn = workflow.add(
            DrawFigures(
                atlas=atlas,
                atlas_mask=atlas_mask,
                scan=scan,
                mask=masked.mask,
                forward_xfm=registered.forward_xfm,
                inverse_xfm=registered.inverse_xfm,
                labels_of_atlas=labels_of_atlas,
                labels=labels,
            )
        )
    products = {
        "forward_xfm": registered.forward_xfm,
        "inverse_xfm": registered.inverse_xfm,
        "warped": registered.warped,
        "jacobian": volume_change,
        "labels": labels,
        "atlas_labels": atlas_labels,
        "mask": masked.mask,
        "conformed_mask": workflow.add(ConformMask(mask=masked.mask)).conformed if conformed_mask else None,
        "record": record,
        **{product.name: getattr(drawn, product.name, None) for product in PRODUCTS if product.figure},
    }
    written = workflow.add(Sink(**products, destination=destination))
    return *(products[product.name] for product in PRODUCTS), written.files


def add_alignment(
    scan: Any, atlas: tuple[Any, Any], given: dict[str, Any], *, profile: str, device: str, seed: int
) -> tuple[Any, Any, dict[str, Any]]:
    """Add the tasks that mask a scan and align it to the atlas, to the workflow that is being built.

    Parameters
    ----------
    scan : File
        Image to be aligned.
    atlas : tuple of File
        Atlas image and its mask.
    given : dict
        Inputs of `Prepare` that belong to the scan.
    profile, device, seed
        See `Subject`.

    Returns
    -------
    masked : Prepare.Outputs
    aligned : AffineAlign.Outputs
    pair : dict
        Inputs that `Register` shares with `AffineAlign`.
    """
    masked = workflow.add(Prepare(image=scan, profile=profile, device=device, **given))
    pair = {
        "fixed": atlas[0],
        "moving": scan,
        "fixed_mask": atlas[1],
        "moving_mask": masked.mask,
        "lesion_mask": masked.lesion_mask,
        "profile": profile,
        "seed": seed,
    }
    return masked, workflow.add(AffineAlign(**pair)), pair
