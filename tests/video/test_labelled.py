"""Labelled videos in the layouts in which data sets are given out, as small stand-ins."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips

from vlad.video import labelled


def pictures(folder, count, suffix=".jpg", marked=()):
    folder.mkdir(parents=True)
    for k in range(count):
        grey = np.full((32, 32, 3), 200 if k in marked else 0, np.uint8)
        Image.fromarray(grey).save(folder / f"{k + 1:03}{suffix}")


def cells(values):
    made = np.empty((1, len(values)), dtype=object)
    for k, value in enumerate(values):
        made[0, k] = value
    return made


def test_avenue_is_read_with_masks_and_with_intervals(tmp_path):
    (tmp_path / "a" / "testing_videos").mkdir(parents=True)
    clips.write(tmp_path / "a" / "testing_videos" / "01.avi", clips.numbered(6), codec="mpeg4")
    masks = [np.zeros((4, 4), np.uint8) for _ in range(6)]
    masks[2][1, 1] = masks[3][0, 0] = 1
    (tmp_path / "a" / "testing_label_mask").mkdir()
    savemat(tmp_path / "a" / "testing_label_mask" / "1_label.mat", {"volLabel": cells(masks)})
    (one,) = labelled.read("avenue", tmp_path / "a")
    assert one.labels.tolist() == [False, False, True, True, False, False] and one.fps is None and one.name == "01"
    pictures(tmp_path / "b" / "testing" / "frames" / "01", 5)
    pictures(tmp_path / "b" / "testing" / "frames" / "02", 4)
    savemat(tmp_path / "b" / "avenue.mat", {"gt": cells([np.array([[2, 5], [3, 5]]), np.zeros((2, 0))])})
    first, second = labelled.read("avenue", tmp_path / "b")
    assert first.labels.tolist() == [False, True, True, False, True], "counted from 1, both ends inclusive"
    assert not second.labels.any() and first.fps == 25


def test_ucsd_and_shanghaitech_are_read(tmp_path):
    pictures(tmp_path / "UCSDped2" / "Test" / "Test001", 4, ".tif")
    pictures(tmp_path / "UCSDped2" / "Test" / "Test001_gt", 4, ".bmp", marked={1, 2})
    pictures(tmp_path / "UCSDped2" / "Test" / "Test002", 4, ".tif")
    (one,) = labelled.read("ucsd", tmp_path)
    assert one.labels.tolist() == [False, True, True, False] and one.fps == 10
    pictures(tmp_path / "s" / "testing" / "frames" / "01_0014", 3)
    (tmp_path / "s" / "testing" / "test_frame_mask").mkdir()
    np.save(tmp_path / "s" / "testing" / "test_frame_mask" / "01_0014.npy", np.array([0, 1, 1], np.uint8))
    (one,) = labelled.read("shanghaitech", tmp_path / "s")
    assert one.labels.tolist() == [False, True, True] and one.name == "01_0014"


def test_ubnormal_has_masks_for_abnormal_videos_alone(tmp_path):
    scene = tmp_path / "Scene1"
    scene.mkdir()
    for name in ("abnormal_scene_1_scenario_1", "normal_scene_1_scenario_1"):
        clips.write(scene / f"{name}.mp4", clips.numbered(3))
    pictures(scene / "abnormal_scene_1_scenario_1_annotations" / "gt", 3, ".png", marked={2})
    bad, good = labelled.read("ubnormal", tmp_path)
    assert bad.labels.tolist() == [False, False, True] and not good.labels.any()


def test_ucf_crime_and_xd_violence_have_one_table_each_of_first_and_last_frames(tmp_path):
    for name in ("Abuse028_x264", "Normal_Videos_003_x264", "Train_only_x264"):
        (tmp_path / "u" / "Videos").mkdir(parents=True, exist_ok=True)
        clips.write(tmp_path / "u" / "Videos" / f"{name}.mp4", clips.numbered(8))
    table = "Abuse028_x264.mp4  Abuse  1  2  5  6\nNormal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1\n"
    (tmp_path / "u" / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt").write_text(table)
    bad, good = labelled.read("ucf_crime", tmp_path / "u")
    assert np.flatnonzero(bad.labels).tolist() == [1, 2, 5, 6], "both ends inclusive"
    assert good.name == "Normal_Videos_003_x264" and not good.labels.any() and len(good.labels) == 8
    (tmp_path / "x").mkdir()
    for name in ("A.Beautiful.Mind__#00-25-20_label_A", "Bad.Boys__#00-01_label_B2-0-0"):
        clips.write(tmp_path / "x" / f"{name}.mp4", clips.numbered(6))
    (tmp_path / "x" / "annotations.txt").write_text("Bad.Boys__#00-01_label_B2-0-0 2 3\n")
    calm, fight = labelled.read("xd_violence", tmp_path / "x")
    assert not calm.labels.any() and np.flatnonzero(fight.labels).tolist() == [2, 3]
    clips.write(tmp_path / "x" / "C_label_G-0-0.mp4", clips.numbered(6))
    with pytest.raises(ValueError, match=r"no line in annotations.txt"):
        labelled.read("xd_violence", tmp_path / "x")
    (tmp_path / "x" / "annotations.txt").write_text("Bad.Boys__#00-01_label_B2-0-0 2 3\nC_label_G-0-0 9 12\n")
    with pytest.raises(ValueError, match=r"labels say frames \[\(9, 12\)\], and it holds 6"):
        labelled.read("xd_violence", tmp_path / "x")


def test_labels_that_do_not_fit_an_empty_folder_and_an_unknown_name_are_refused(tmp_path):
    pictures(tmp_path / "testing" / "frames" / "01_0014", 3)
    (tmp_path / "testing" / "test_frame_mask").mkdir()
    np.save(tmp_path / "testing" / "test_frame_mask" / "01_0014.npy", np.zeros(4))
    with pytest.raises(ValueError, match="01_0014: 3 frames and 4 labels; give it whole"):
        labelled.read("shanghaitech", tmp_path)
    with pytest.raises(ValueError, match="no test videos as avenue lays them out; expected testing_videos"):
        labelled.read("avenue", tmp_path)
    with pytest.raises(ValueError, match="known: avenue, shanghaitech, ucsd, ubnormal, ucf_crime, xd_violence"):
        labelled.read("ped3", tmp_path)
