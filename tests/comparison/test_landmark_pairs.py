"""Pairs with landmarks: what is done is recognised, and nothing else is."""

import json

import numpy as np
import pytest

from nio_pydra.comparison import landmark_pairs
from nio_pydra.comparison.landmark_pairs import LandmarkPair, register_landmarks
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.methods import choose_method
from nio_pydra.errors import InputError
from nio_pydra.networks.checkpoints import default_weights, weights_digest
from nio_pydra.profiles import LUNG
from nio_pydra.system.files import contents_digest


@pytest.mark.parametrize(
    ("change", "affine", "done"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"profile": "brain"}, False, False),
        ({"seed": 1}, False, False),
        ({"preset": "paper"}, False, False),
        ({"seconds": {"affine": 2.0}}, False, False),
        ({"seconds": {"affine": 2.0}}, True, True),
        ({"weights": {"sha256": "0" * 64}}, False, False),
        ({"inputs": {}}, False, False),
        ({"masks": {}}, False, False),
        ({"fingerprint": "another program"}, False, False),
    ],
)
def test_a_pair_is_registered_anew_where_anything_differs(tmp_path, monkeypatch, change, affine, done):
    method, points = choose_method("lapirn", "chest"), np.zeros((1, 3))
    scans = [ScanFiles(tmp_path / name) for name in ("fixed", "moving")]
    for scan in scans:
        scan.image.write_text(scan.image.name)
    record = {
        **method.record(),
        "inputs": {scan.image.name: contents_digest(scan.image) for scan in scans},
        "profile": "lung",
        "seed": 0,
        "seconds": {"affine": None},
        "weights": {"sha256": weights_digest(default_weights())},
    }
    (tmp_path / "record.json").write_text(json.dumps({**record, **change}))
    calls = []

    def noted(name):
        def stop(*_, **__):
            calls.append(name)
            raise InputError(name)

        return stop

    monkeypatch.setattr(landmark_pairs, "register_pair", noted("registered"))
    monkeypatch.setattr(landmark_pairs, "read_h5", noted("measured"))
    pair = LandmarkPair(scans[0], scans[1], (points, points), LUNG)
    with pytest.raises(InputError):
        register_landmarks(pair, tmp_path, method, Runtime(), affine=affine)
    assert calls == ["measured" if done else "registered"]
