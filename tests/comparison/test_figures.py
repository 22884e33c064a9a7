"""Pictures of a comparison: they follow the data, names can be read, and the rules of the captions are kept."""

from dataclasses import replace
from itertools import combinations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from nio_pydra.comparison.figures import draw_boxes, draw_regularity, draw_times, write_figures
from nio_pydra.comparison.slices import ATLAS_COLOUR, CASE_COLOUR, choose_cases, draw_slices
from nio_pydra.errors import InputError
from nio_pydra.report.axial import axial_view


def _drawn(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def _names(figure) -> dict[str, np.ndarray]:
    """Left, bottom, right and top of every name beside a point, in pixels."""
    _drawn(figure)
    found = [text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.arrow_patch]
    return {text.get_text(): np.array(Text.get_window_extent(text).extents) for text in found}


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) > 0).all())


@pytest.mark.parametrize("draw", [draw_boxes, draw_times, draw_regularity])
def test_pictures_follow_the_data_and_nothing_else(draw, make_results):
    results, again = make_results(), make_results()
    other = results.cases.copy()
    other.loc[other["method"] == "best", "dice_all"] += 0.02
    assert np.array_equal(_drawn(draw(results)), _drawn(draw(again)))
    assert not np.array_equal(_drawn(draw(results)), _drawn(draw(replace(results, cases=other))))


def test_boxes_have_a_panel_for_each_group_and_a_point_for_each_case(make_results):
    results = make_results()
    figure = draw_boxes(results)
    assert [axis.get_title() for axis in figure.axes] == ["all (3)", "cortical (1)", "subcortical (2)"]
    _drawn(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(results.methods)
    top, bottom = figure.axes[0].get_ylim()[::-1]
    assert top < 0 < len(results.methods) - 1 < bottom  # the first method is at the top
    points = [line.get_xdata() for line in figure.axes[1].lines if line.get_marker() == "o"]
    cortical = [results.done(name)["dice_cortical"] for name in results.methods]
    assert all(np.array_equal(drawn, known) for drawn, known in zip(points, cortical, strict=True))


def test_a_method_without_cases_keeps_its_place_and_says_why(make_results):
    results = make_results()
    cases = results.cases
    failed = cases["method"].eq("affine")
    cases = pd.concat([cases[~failed], cases[failed].assign(status="failed", reason="no")])
    cases = cases[cases["method"] != "smooth?weight=1"]
    axis = draw_boxes(replace(results, cases=cases)).axes[0]
    places = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert places == {"failed": 0, "not done": 2}


@pytest.mark.parametrize("times", [(12,), (9, 10, 11), (90, 230), (2, 300)])
@pytest.mark.filterwarnings("error")
def test_times_have_ticks_and_lie_inside_the_frame_however_few_they_are(make_results, times):
    results = make_results(["sub-01"])
    cases = results.cases.assign(seconds=[float(times[row % len(times)]) for row in range(len(results.cases))])
    figure = draw_times(replace(results, cases=cases))
    _drawn(figure)
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    assert low < min(times) <= max(times) < high
    assert sum(low <= tick <= high for tick in axis.get_xticks()) >= 2
    frame, picture = axis.get_window_extent().extents, figure.bbox.extents
    assert (frame[:2] > picture[:2]).all() and (frame[2:] < picture[2:]).all()
    names = _names(figure)
    assert names and all((box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all() for box in names.values())


def test_names_beside_points_cover_neither_each_other_nor_a_point(make_results):
    results = make_results()
    crowd = [f"method{number}" for number in range(9)]
    cases = pd.concat(
        [
            results.cases[results.cases["method"] == "best"].assign(
                method=name, std_jacobian=0.5 + 0.004 * (number % 3), dice_all=0.65 + 0.002 * number
            )
            for number, name in enumerate(crowd)
        ]
        + [results.cases]
    )
    methods = {name: replace(results.methods["best"], engine=name) for name in crowd} | dict(results.methods)
    figure = draw_regularity(replace(results, cases=cases, methods=methods))
    names = _names(figure)
    assert set(names) == {*crowd, "best", "network", "smooth (4 settings)"}
    assert not [pair for pair in combinations(names, 2) if _overlap(*(names[name] for name in pair))]
    axis = figure.axes[0]
    points = np.concatenate(
        [axis.transData.transform(line.get_xydata()) for line in axis.lines if line.get_marker() != "None"]
    )
    assert len(points) == len(crowd) + 6
    for name, box in names.items():
        assert not (((points > box[:2]) & (points < box[2:])).all(axis=1)).any(), name
        frame = np.array(axis.get_window_extent().extents)
        assert (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all(), name


def test_settings_of_one_method_are_joined_in_order_of_regularity(make_results):
    axis = draw_regularity(make_results()).axes[0]
    lines = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]
    assert [list(line) for line in lines] == [[0.10, 0.20, 0.30, 0.40]]


def test_weights_of_one_file_name_in_different_folders_are_not_joined(make_results):
    results = make_results()
    renamed = {"best": "net@a/weights.pth", "network": "net@b/weights.pth"}
    methods = {
        renamed.get(name, name): replace(method, engine="net", weights="weights.pth") if name in renamed else method
        for name, method in results.methods.items()
    }
    cases = results.cases.assign(method=results.cases["method"].replace(renamed))
    figure = draw_regularity(replace(results, methods=methods, cases=cases, reference=renamed["best"]))
    assert set(_names(figure)) == {*renamed.values(), "smooth (4 settings)"}


def test_a_method_that_does_not_deform_is_no_point_but_named(make_results):
    results = make_results()
    for draw in (draw_times, draw_regularity):
        axis = draw(results).axes[0]
        assert "not shown: affine 0.428" in [text.get_text() for text in axis.texts]
    near = results.cases.copy()
    near.loc[near["method"] == "affine", "dice_all"] = 0.6
    axis = draw_regularity(replace(results, cases=near)).axes[0]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == pytest.approx([0.6])


def test_the_slice_is_at_its_height_whatever_the_orientation_of_the_atlas(write_image, tmp_path):
    labels = np.zeros((20, 30, 40), np.int16)
    labels[4:16, 5:25, 10:31] = 1
    values = np.random.default_rng(0).uniform(size=labels.shape)
    view = axial_view(nib.Nifti1Image(labels, np.eye(4)))
    assert view.level == round(10 + 0.55 * 20) and view.window == (slice(0, 21), slice(0, 30))
    cut = view.cut(nib.Nifti1Image(values, np.eye(4)))
    assert np.array_equal(cut, np.rot90(values[..., 21]))
    flipped = np.diag([-1.0, 1, -1, 1])
    turned = nib.Nifti1Image(values[::-1, :, ::-1], flipped), nib.Nifti1Image(labels[::-1, :, ::-1], flipped)
    assert np.array_equal(axial_view(turned[1]).cut(turned[0]), cut)


def test_cases_are_chosen_by_the_reference_alone(make_results):
    results = make_results()
    order = np.random.default_rng(0).permutation(8)
    cases = results.cases.copy()
    of_best = cases["method"] == "best"
    cases.loc[of_best, "dice_all"] = cases.loc[of_best, "dice_all"].to_numpy()[order]
    ranked = cases[of_best].sort_values("dice_all")["case"].to_list()
    chosen = choose_cases(replace(results, cases=cases))
    assert chosen == {ranked[0]: "lowest", ranked[3]: "median", ranked[7]: "highest"}
    assert choose_cases(make_results(["sub-01"])) == {"sub-01": "only"}
    assert set(choose_cases(make_results(["sub-01", "sub-02"])).values()) == {"lowest", "highest"}
    assert choose_cases(replace(results, cases=cases[~of_best])) == {}


def _panel(figure, start: str):
    return next(axis for axis in figure.axes if axis.get_title().startswith(start))


def test_slices_show_every_method_with_both_outlines(with_images):
    figure = draw_slices(with_images, "sub-01")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "moving after affine: 0.400" and titles[1] == "atlas Tiny"
    assert titles[2:] == [f"{name}: {float(score):.3f}" for name, score in _scores(with_images, "sub-01").items()]
    for start, colours in (("atlas", [ATLAS_COLOUR]), ("best", [CASE_COLOUR, ATLAS_COLOUR])):
        drawn = [one for one in _panel(figure, start).collections if isinstance(one, LineCollection)]
        assert [tuple(one.get_colors()[0]) for one in drawn] == [to_rgba(colour) for colour in colours]
        assert all(len(one.get_segments()) >= 3 for one in drawn)  # three tissues
    limits = {axis.images[0].get_clim() for axis in figure.axes if axis.images and "atlas" not in axis.get_title()}
    assert len(limits) == 1


def _scores(results, case: str) -> dict[str, float]:
    rows = results.cases[(results.cases["case"] == case) & (results.cases["method"] != "affine")]
    return dict(zip(rows["method"], rows["dice_all"], strict=True))


def test_another_image_changes_its_own_panel_only(with_images):
    figure = draw_slices(with_images, "sub-02")
    before = _drawn(figure)
    path = next(with_images.methods["best"].folder.glob("sub-02/anat/*_T1w.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1] * 0.5, image.affine), path)
    after = _drawn(draw_slices(with_images, "sub-02"))
    changed = np.argwhere((before != after).any(axis=2))
    box = np.array(_panel(figure, "best").get_window_extent().extents)
    assert len(changed) > 100
    rows, columns = before.shape[0] - changed[:, 0], changed[:, 1]
    assert box[0] - 1 <= columns.min() and columns.max() <= box[2] + 1
    assert box[1] - 1 <= rows.min() and rows.max() <= box[3] + 1


def test_a_failed_case_is_an_empty_panel_whatever_an_earlier_run_left(with_images):
    figure = draw_slices(with_images, "sub-03")
    assert [text.get_text() for text in _panel(figure, "network").texts] == ["failed"]
    assert not _panel(figure, "network").images[0].get_array().any()
    figure = draw_slices(with_images, "sub-02")
    assert [text.get_text() for text in _panel(figure, "network").texts] == ["not done"]
    next(with_images.methods["best"].folder.glob("sub-02/anat/*_T1w.nii.gz")).unlink()
    assert [text.get_text() for text in _panel(draw_slices(with_images, "sub-02"), "best").texts] == ["image not found"]


def test_scans_whose_names_begin_alike_are_told_apart(with_images):
    folder = with_images.methods["best"].folder / "sub-01" / "anat"
    source = next(folder.glob("*_T1w.nii.gz"))
    bright = nib.Nifti1Image(nib.load(source).get_fdata() * 7, nib.load(source).affine)
    for name in (
        "sub-01_run-1_space-Tiny_desc-best",
        "sub-01_space-Tiny2_desc-best",
        "sub-01_space-Tiny_res-1_desc-best",
    ):
        nib.save(bright, folder / f"{name}_T1w.nii.gz")
    assert _panel(draw_slices(with_images, "sub-01"), "best").images[0].get_array().max() < 200


def test_all_pictures_are_written_with_the_rule_in_the_caption(with_images, tmp_path):
    pictures = write_figures(with_images, tmp_path / "figures")
    assert [picture.path.name for picture in pictures] == [
        "boxes.png", "seconds.png", "regularity.png", "slices_lowest.png", "slices_median.png", "slices_highest.png",
    ]  # fmt: skip
    assert all(min(imread(picture.path).shape[:2]) > 300 for picture in pictures)
    assert "lowest, the median and the highest Dice of best" in pictures[3].caption and "55%" in pictures[3].caption
    assert pictures[3].title == "sub-01, the case with the lowest Dice of best"


def test_pictures_that_have_no_data_are_left_out(make_results, tmp_path):
    results = make_results()
    assert len(write_figures(results, tmp_path / "a")) == 3  # this atlas has no labels
    assert write_figures(replace(results, cases=pd.DataFrame()), tmp_path / "b") == []


def test_without_dice_or_a_deformation_there_is_nothing_to_draw(make_results, tmp_path):
    results = make_results()
    columns = [name for name in results.cases if name.startswith("dice_")]
    assert write_figures(replace(results, cases=results.cases.drop(columns=columns)), tmp_path / "a") == []
    affine = results.cases[results.cases["method"] == "affine"]
    assert [made.path.name for made in write_figures(replace(results, cases=affine), tmp_path / "b")] == ["boxes.png"]
    none = results.cases.copy()
    none.loc[none["method"] == "affine", columns] = None
    assert [text.get_text() for text in draw_boxes(replace(results, cases=none)).axes[0].texts] == ["no common label"]


def test_names_of_methods_are_text_and_no_formula(make_results, tmp_path):
    results = make_results()
    name = "best@$x^$.pth"
    methods = {name if key == "best" else key: method for key, method in results.methods.items()}
    cases = results.cases.assign(method=results.cases["method"].replace("best", name))
    assert write_figures(replace(results, methods=methods, cases=cases, reference=name), tmp_path)


def test_labels_on_another_grid_are_refused(with_images):
    path = next(with_images.methods["best"].folder.glob("sub-01/anat/*_dseg.nii.gz"))
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.int16), np.eye(4)), path)
    with pytest.raises(InputError, match=path.name):
        draw_slices(with_images, "sub-01")
