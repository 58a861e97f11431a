"""Good clips as normals: frames of one clip count as one block at a time, never as normals of their own."""

import logging

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips

import vlad
from vlad.video import fitting
from vlad.video.fitting import fit_clips
from vlad.video.scoring import Timing, score_video

TIMING = Timing(every=1.0, smooth=1.0)


def belt(path, seed, seconds=40, fault=None):
    """Parts of random grey that pass, one every 5 s; from `fault` on for 3 s something bright lies on the belt."""
    rng, pictures = np.random.default_rng(seed), []
    for second in range(seconds):
        if second % 5 == 0:
            part = rng.integers(90, 120, (64, 64, 3), dtype=np.uint8)
        picture = part.copy()
        if fault is not None and fault <= second < fault + 3:
            picture[16:40, 16:40] = (250, 40, 40)
        pictures.append(picture)
    return clips.write(path, pictures, fps=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return [belt(folder / f"{seed}.mp4", seed) for seed in (1, 2)]


def test_two_good_clips_give_a_threshold_that_another_good_one_keeps_and_a_fault_breaks(good, tiny_encoder, tmp_path):
    detector = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, timing=TIMING)
    made = detector.calibration
    assert (
        made.n == 8
        and made.rate == 1 / 9
        and made.threshold > made.scores[-1]
        and "8 blocks of 10 s of 2 clips, each compared with the other clips" in made.note
    )
    quiet = score_video(detector, belt(tmp_path / "other.mp4", 3), timing=TIMING)
    assert len(quiet.events) <= 1
    found = score_video(detector, belt(tmp_path / "fault.mp4", 4, fault=12), timing=TIMING)
    assert [one for one in found.events if one.start <= 14 and one.end >= 12]


def test_one_clip_gives_a_memory_and_no_threshold_and_says_why(good, tiny_encoder, caplog):
    with caplog.at_level(logging.WARNING):
        detector = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good[:1], timing=TIMING)
    assert detector.threshold is None and detector.references
    assert "frames of one clip are alike" in caplog.text and "give two good clips" in detector.calibration.note


def test_such_a_detector_is_saved_and_takes_no_further_pictures(good, tiny_encoder, tmp_path):
    detector = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, timing=TIMING)
    detector.save(tmp_path / "belt.safetensors")
    again = vlad.load(tmp_path / "belt.safetensors", encoder=tiny_encoder)
    assert again.threshold == detector.threshold
    with pytest.raises(RuntimeError, match="its thresholds come from clips"):
        again.add([np.zeros((64, 64, 3), np.uint8)])


def test_clips_that_are_too_short_for_a_threshold_say_so_in_blocks(tiny_encoder, tmp_path, caplog):
    short = [belt(tmp_path / f"{seed}.mp4", seed, seconds=4) for seed in (1, 2)]
    with caplog.at_level(logging.WARNING):
        detector = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), short, timing=TIMING)
    assert detector.threshold is None
    assert "no threshold: 2 blocks of 10 s are too few; give longer or more good clips" in caplog.text


def test_a_block_that_is_none_is_refused(good, tiny_encoder):
    with pytest.raises(ValueError, match="block is 0"):
        fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, block=0)


def test_each_frame_is_encoded_once_and_twice_where_there_is_no_room_with_the_same_threshold(
    good, tiny_encoder, monkeypatch
):
    seen, walk = [], type(tiny_encoder).value_walk

    def counted(self, pixels, *rest, **more):
        seen.append(len(pixels))
        return walk(self, pixels, *rest, **more)

    monkeypatch.setattr(type(tiny_encoder), "value_walk", counted)
    once = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, timing=Timing(every=4.0))
    assert sum(seen) == 20
    seen.clear()
    monkeypatch.setattr(fitting, "SHARED_BYTES", 0)
    twice = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, timing=Timing(every=4.0))
    assert sum(seen) == 40
    assert twice.calibration.scores == pytest.approx(once.calibration.scores, abs=1e-6)


def test_each_clip_is_compared_with_what_the_others_alone_would_have_taught(good, tiny_encoder):
    timing = Timing(every=4.0, smooth=0)
    both = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), good, timing=timing)
    scores = []
    for own, other in (good, good[::-1]):
        alone = fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), [other], timing=timing)
        found = []
        score_video(alone, own, timing=timing, progress=lambda line, *_, found=found: found.append(line))
        blocks = [int(line["time"] // 10) for line in found]
        scores += [
            max(line["score"] for line, at in zip(found, blocks, strict=True) if at == one) for one in set(blocks)
        ]
    assert both.calibration.scores == pytest.approx(sorted(scores), abs=1e-6)


def test_a_method_that_keeps_pictures_whole_and_one_that_keeps_sums_learn_from_clips(good, tiny_encoder, tmp_path):
    for method in ("subspacead", "gaussian"):
        detector = fit_clips(vlad.load(method, encoder=tiny_encoder), good, timing=Timing(every=5.0))
        assert detector.threshold is not None and len(detector.references) == 16
        detector.save(tmp_path / f"{method}.safetensors")
        assert vlad.load(tmp_path / f"{method}.safetensors", encoder=tiny_encoder).threshold == detector.threshold


def test_the_same_clip_twice_is_refused(good, tiny_encoder):
    with pytest.raises(ValueError, match="a clip is given twice"):
        fit_clips(vlad.load("patch_memory", encoder=tiny_encoder), [good[0], good[0]])
