"""Images in formats of ITK."""

import numpy as np
import pytest

from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_mask

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 0 1 0 1 0 0 0 0 -1
Offset = -10 20 30
CenterOfRotation = 0 0 0
ElementSpacing = 2 3 4
DimSize = 4 3 2
ElementType = {kind}
ElementDataFile = LOCAL
"""


def write_mha(path, voxels):
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[voxels.dtype.name]
    path.write_bytes(HEADER.format(kind=kind).encode() + voxels.transpose(2, 1, 0).tobytes())
    return path


def test_a_metaimage_lies_where_its_header_says(tmp_path):
    voxels = np.arange(-1000, -976, dtype=np.int16).reshape(4, 3, 2)
    image = load_image(write_mha(tmp_path / "ct.mha", voxels))
    np.testing.assert_array_equal(image.dataobj, voxels)
    # In the file: LPS mm, and a matrix whose every three numbers are the direction of an axis.
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [10, -20, 30, 1])
    np.testing.assert_allclose(image.affine[:3, 0], [0, -2, 0])
    np.testing.assert_allclose(image.affine[:3, 1], [-3, 0, 0])
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, -4])


def test_a_mask_can_be_a_metaimage_and_a_damaged_one_is_refused(tmp_path):
    path = write_mha(tmp_path / "mask.mha", np.ones((4, 3, 2), np.uint8))
    assert load_mask(path).get_data_dtype() == np.uint8
    (tmp_path / "broken.mha").write_text("NDims = three")
    with pytest.raises(InputError, match=r"broken\.mha \(image\) cannot be read as an image"):
        load_image(tmp_path / "broken.mha")
