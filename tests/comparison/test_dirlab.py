"""DIR-Lab's files: the published distances of the landmarks, the raw images, and the table of the paper."""

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.comparison.dirlab import CASES, INITIAL, PAPER, Geometry, cases_table, find_case, read_phase, summary
from nio_pydra.errors import InputError
from nio_pydra.metrics import landmark_errors
from nio_pydra.spatial.landmarks import read_pair
from nio_pydra.spatial.transforms import Transform

SMALL = Geometry((10, 8, 6), (0.97, 0.97, 2.5))


@pytest.mark.parametrize("case", CASES)
def test_landmarks_are_as_far_apart_as_published(real_data, case):
    """Checks the spacings, the counting from 1, the order of the axes and which file belongs to which case."""
    geometry = CASES[case]
    grid = nib.Nifti1Image(np.zeros(geometry.shape, np.uint8), np.diag([*(-np.array(geometry.spacing)), 1]))
    folder = real_data / "lung" / "dirlab4dct_landmarks"
    names = [folder / f"case{case}_dirlab300_{phase}_xyz.txt" for phase in ("T00_EI", "T50_EE")]
    points = read_pair(names[0], grid, names[1], grid)
    found = landmark_errors(*points, Transform(()), grid)
    mean, deviation = PAPER["Initial"][case - 1]
    assert len(found.errors) == 300
    assert found.errors.mean() == pytest.approx(mean, abs=0.0051)
    assert found.errors.std() == pytest.approx(deviation, abs=0.0051)
    assert np.allclose(found.errors, found.snapped)  # the landmarks are voxels
    # At expiration the base of the lung is higher.
    fixed, moving = points
    low = fixed[:, 2] < np.median(fixed[:, 2])
    assert (moving - fixed)[low, 2].mean() > max(0, (moving - fixed)[~low, 2].mean())


def test_the_papers_last_row_follows_from_its_cases():
    for name, kind in (("Initial", "pooled"), ("LapIRN", "cases"), ("IO", "mean"), ("NIO_m", "mean")):
        means, deviations = np.array(PAPER[name][:10]).T
        of_kind = {
            "pooled": np.sqrt((deviations**2 + (means - means.mean()) ** 2).mean()),
            "cases": means.std(),
            "mean": deviations.mean(),
        }[kind]
        assert means.mean() == pytest.approx(PAPER[name][10][0], abs=0.0051)
        assert of_kind == pytest.approx(PAPER[name][10][1], abs=0.0081)


def chest(offset, outside=-1024):
    voxels = np.full(SMALL.shape, 40, np.int16)
    voxels[2:8, 2:6, 1:5] = -800
    voxels[0] = outside
    return voxels + np.int16(offset)


@pytest.mark.parametrize(("offset", "outside"), [(0, -1000), (1024, -1024), (0, -2000)])
def test_hounsfield_units_are_found_whatever_the_offset(tmp_path, offset, outside):
    voxels = chest(offset, outside)
    path = tmp_path / "case1_T00_s.img"
    path.write_bytes(voxels.astype("<i2").tobytes(order="F"))
    image = read_phase(path, SMALL)
    assert np.array_equal(np.asanyarray(image.dataobj), chest(0, outside))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "I")
    assert np.allclose(image.header.get_zooms(), SMALL.spacing)


def test_files_that_are_no_images_of_the_case_are_refused(tmp_path):
    path = tmp_path / "case1_T00_s.img"
    path.write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"case1_T00_s\.img has 100 bytes: expected 960, int16 .* 10 x 8 x 6"):
        read_phase(path, SMALL)
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 480).astype("<i2").tobytes())
    with pytest.raises(InputError, match="hardly any lung or tissue"):
        read_phase(path, SMALL)


def unpack(folder, number=1, phases=("T00", "T50"), points=("T00", "T50")):
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    for phase in (*phases, "T10"):
        (folder / "Images" / f"case{number}_{phase}_s.img").touch()
    for phase in points:
        (folder / f"Case{number}_300_{phase}_xyz.txt").touch()
        (folder / f"case{number}_4D-75_{phase}.txt").touch()


def test_files_of_a_case_are_found_among_those_of_others(tmp_path):
    unpack(tmp_path / "Case1Pack", 1)
    unpack(tmp_path / "Case10Pack", 10)
    for number in (1, 10):
        found = find_case(tmp_path, number)
        assert [path.name for path in found.images] == [f"case{number}_T00_s.img", f"case{number}_T50_s.img"]
        assert [path.name for path in found.landmarks] == [f"Case{number}_300_T{p}_xyz.txt" for p in ("00", "50")]
    assert find_case(tmp_path, 2) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"phases": ("T00",)}, r"no image \(\.img\) of case 1 at phase T50: expected one for each of T00 and T50"),
        ({"points": ("T50",)}, r"no 300 landmarks \(\.txt\) of case 1 at phase T00"),
    ],
)
def test_a_missing_phase_is_named(tmp_path, change, sentence):
    unpack(tmp_path, **change)
    with pytest.raises(InputError, match=sentence):
        find_case(tmp_path, 1)


def test_two_images_of_one_phase_are_refused(tmp_path):
    unpack(tmp_path / "a")
    unpack(tmp_path / "b")
    with pytest.raises(InputError, match=r"has 2 image \(\.img\) of case 1 at phase T00.*Found: .*a/.*b/"):
        find_case(tmp_path, 1)


def record(errors):
    summarised = {"mean": float(np.mean(errors)), "sd": float(np.std(errors)), "errors": list(errors)}
    return {"landmarks": {"count": len(errors), **summarised, "snapped": summarised}}


def test_the_table_tells_the_kinds_of_deviation_apart():
    records = {
        (1, INITIAL): record([4.0, 6.0]), (2, INITIAL): record([1.0, 1.0]),
        (1, "nio_m:chest"): record([1.0, 3.0]), (2, "nio_m:chest"): record([1.0, 1.0]),
        (1, "affine"): record([2.0, 2.0]),
    }  # fmt: skip
    text = summary(records, {(2, "affine"): "it broke"})
    rows = {line.split("|")[1].strip(" *"): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in text.splitlines() if line.startswith("|")}  # fmt: skip
    assert rows["Case"] == ["Initial", "Initial (paper)", "nio\\_m:chest", "NIO\\_m (paper)", "affine"]
    assert rows["1"] == ["5.00 ± 1.00", "3.89 ± 2.78", "2.00 ± 1.00", "0.99 ± 0.46", "2.00 ± 0.00"]
    assert rows["2"][-1] == "–"
    # Case 2 is not among them, as one method has not done it.
    assert rows["Mean of 1 cases"] == ["5.00", "3.89", "2.00", "0.99", "2.00"]
    del records[1, "affine"]
    text = summary(records, {(2, "affine"): "it broke"})
    rows = {line.split("|")[1].strip(" *"): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in text.splitlines() if line.startswith("|")}  # fmt: skip
    assert rows["Mean of 2 cases"] == ["3.00", "4.12", "1.50", "0.98", "–"]
    assert rows["SD over all landmarks"][2] == f"{np.std([1, 3, 1, 1]):.2f}"
    assert rows["SD over cases"][2] == "0.50" and rows["Mean of the cases' SD"][2] == "0.50"
    assert rows["Mean of the cases' SD"][3] == f"{(0.46 + 0.47) / 2:.2f}"
    assert rows["Below 1.2 mm"][2] == "75%"
    assert "Case 2, affine: it broke" in text
    records[1, "affine"] = record([2.0, 2.0])
    table = cases_table(records)
    assert len(table) == 5 and table.set_index(["case", "method"]).loc[(1, "affine"), "mean"] == 2.0
