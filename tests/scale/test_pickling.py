"""Detectors and what mentions VLAD's modules travel to other processes."""

import pickle

import numpy as np
import pytest

import vlad
from vlad.images import ImageError


@pytest.fixture
def pictures():
    return [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(5)]


@pytest.mark.parametrize("method", ["patch_memory", "winclip", "anomalyclip"])
def test_a_pickled_detector_says_what_it_said(method, pictures, tiny_encoder):
    name = None if method == "patch_memory" else "metal bolt"
    detector = vlad.load(method, name, encoder=tiny_encoder, roi=(2, 2, 40, 38), bits=12)
    if method == "patch_memory":
        detector.fit(pictures, max_false_positive_rate=0.2)
    detector.map_threshold = 0.25
    again = pickle.loads(pickle.dumps(detector))
    ours, theirs = again.predict(pictures[0]), detector.predict(pictures[0])
    assert ours.to_dict() == theirs.to_dict() and np.array_equal(ours.map, theirs.map)
    assert (again.calibration, again.reader, again.framing) == (detector.calibration, detector.reader, detector.framing)


def test_functions_that_mention_the_modules_travel(tiny_encoder):
    cloudpickle = pytest.importorskip("cloudpickle")

    def names():
        return vlad.evaluate.__name__, vlad.datasets.__name__, vlad.methods(), vlad.scale.SHARD, tiny_encoder.digest

    assert pickle.loads(cloudpickle.dumps(names))() == names()
    assert str(pickle.loads(pickle.dumps(ImageError("a.png: broken", "a.png")))) == "a.png: broken"
