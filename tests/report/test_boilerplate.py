"""The methods text: it says what was run, and cites it."""

import re
from pathlib import Path

import pytest

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.methods import Method
from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.report.boilerplate import Boilerplate, write_boilerplate


def scan(number, **more):
    return Scan(Path("/x.nii.gz"), "x", {"subject": f"{number:02}"}, **more)


def atlas(name="MNI152NLin2009cAsym", reference="https://templateflow/x", image=Path("/tpl/x.nii.gz"), **more):
    return Atlas(name, image, None, None, False, reference, **more)


def text_of(engine="nio_m", scans=None, atlases=None, **more):
    preset, settings = next(iter(get_engine(engine).presets.items()))
    return Boilerplate(scans or [scan(1)], atlases or [atlas()], Method(engine, preset, settings), **more)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_cited_with_its_settings(engine, monkeypatch):
    monkeypatch.setattr(type(get_engine(engine)), "weights_used", lambda self, settings: None)
    written = text_of(engine)
    text = written.markdown()
    if engine != "affine":
        assert f"engine {engine}, preset {written.method.preset}" in text
    for reference in get_engine(engine).references:
        assert reference.cited in text.split("## References")[0]
        assert reference.title in text.split("## References")[1]


def test_the_bib_file_holds_what_the_text_cites_and_nothing_else(tmp_path):
    markdown, bib = (path.read_text() for path in write_boilerplate(text_of(), tmp_path))
    body, listed = markdown.split("## References")
    keys = re.findall(r"^@article\{(\w+),$", bib, re.MULTILINE)
    assert len(keys) == len(set(keys)) == listed.count("\n- ")
    for key in keys:
        family, year = re.fullmatch(r"([a-z]+)(\d{4})", key).groups()
        assert re.search(rf"{family}[^;()]* {year}", body, re.IGNORECASE)
    assert bib.count("{") == bib.count("}")
    assert {"mok2023", "mok2020", "avants2011", "fisch2024", "ciric2022"} <= set(keys)


def test_masks_and_lesions_are_counted_by_where_they_come_from():
    masked, lesioned = scan(1, mask=Path("/m")), scan(2, mask=Path("/m"), lesion=Path("/l"))
    scans = [masked, lesioned, scan(3, skull_stripped=True), scan(4), scan(5, problem="broken")]
    text = text_of(scans=scans).markdown()
    assert "4 scans (T1w) of 4 participants" in text
    assert "masks of 2 scans came from derivatives" in text
    assert "1 scan showed the brain alone" in text
    assert "masks of 1 scan were computed by deepbet (Fisch et al. 2024)" in text
    assert "In 1 scan the similarity measure ignored a lesion" in text
    stripped = text_of(scans=[scan(4, skull_stripped=True)])
    assert "deepbet" not in stripped.markdown() and "fisch2024" not in stripped.bibtex()


def test_scans_that_failed_are_counted_apart():
    scans = [scan(1), scan(2), scan(3), scan(4, problem="broken")]
    text = text_of(scans=scans, failed={"sub-03"}).markdown()
    assert "2 scans (T1w) of 2 participants" in text and "masks of 2 scans were computed by deepbet" in text
    assert "2 further scans could not be aligned to the atlas." in text
    nothing = text_of(scans=scans[:1], failed={"sub-01"}).markdown()
    assert "0 scans (T1w) of 0 participants" in nothing and "deepbet" not in nothing
    assert "1 further scan could not" in nothing and "further" not in text_of(scans=scans[:1]).markdown()


def test_resampling_is_told_as_it_was_done():
    affine, deformed = text_of("affine").markdown(), text_of("nio_m").markdown()
    assert "interpolation, through the affine." in affine and "deformation together" not in affine
    assert "through affine and deformation together." in deformed
    labelled = [Atlas("A", Path("/a"), None, Path("/l"), False, "file:///a"), atlas()]
    for with_labels in (text_of(atlases=labelled), text_of(scans=[scan(1), scan(2, labels=Path("/l"))])):
        assert "together; label images with the nearest neighbour." in with_labels.markdown()


def test_every_atlas_is_named_with_cohort_and_resolution_and_own_images_cite_no_template():
    text = text_of(atlases=[atlas("MNIInfant", cohort="1", resolution="2"), atlas("Mine", "file:///a.nii.gz")])
    assert "template MNIInfant, cohort 1, resolution 2 from TemplateFlow (Ciric et al. 2022)" in text.markdown()
    assert "One atlas was Mine, an image of our own (x.nii.gz)" in text.markdown()
    assert "1 scan (T1w) of 1 participant, organised" in text.markdown() and "were aligned" not in text.markdown()
    assert "ciric2022" not in text_of(atlases=[atlas("Mine", "file:///a.nii.gz")]).bibtex()


@pytest.mark.parametrize("listed", ['["https://doi.org/10.1/t"]', '{"paper": "https://doi.org/10.1/t"}'])
def test_references_of_the_template_are_those_of_its_description(tmp_path, listed):
    folder = tmp_path / "tpl-Mine" / "cohort-1"
    folder.mkdir(parents=True)
    own = atlas(image=folder / "x.nii.gz")
    assert "10.1/t" not in text_of(atlases=[own]).markdown()
    (folder.parent / "template_description.json").write_text(f'{{"ReferencesAndLinks": {listed}}}')
    assert f"- {own.name}: https://doi.org/10.1/t" in text_of(atlases=[own]).markdown()


def test_seed_is_named():
    assert "random seed 7" in text_of(runtime=Runtime(seed=7)).markdown()
