"""Videos with a label for each frame, in the layouts in which data sets of videos are given out.

A video whose labels and frames disagree in number is an error that names it; nothing is cut to fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.images.listing import list_images
from vlad.video.published import interval_labels
from vlad.video.reading import count_frames, is_video

RATES = {"avenue": 25.0, "shanghaitech": 24.0, "ucsd": 10.0, "ubnormal": 30.0}  # frames a second, of folders


@dataclass(frozen=True, eq=False)
class Labelled:
    """A test video.

    Attributes:
        source: a file, or a folder of frames.
        labels: bool [frames], in decoding order.
        fps: of a folder; None where the file has times of its own.
    """

    source: str
    labels: np.ndarray
    fps: float | None = None

    @property
    def name(self) -> str:
        """What a table calls it."""
        return Path(self.source).stem if is_video(self.source) else Path(self.source).name


def read(name: str, root: str | Path) -> list[Labelled]:
    """The test videos of a data set, in order of their names.

    Raises:
        ValueError: an unknown data set, nothing there, or labels and frames that differ in number.
    """
    if name not in READERS:
        raise ValueError(f"{name} is no data set of videos; known: {', '.join(READERS)}")
    folder = Path(root)
    found = READERS[name](folder)
    if not found:
        raise ValueError(f"{folder}: no test videos as {name} lays them out; {LAYOUTS[name]}")
    for video in found:
        count = count_frames(video.source) if is_video(video.source) else len(_pictures(video.source))
        if count != len(video.labels):
            raise ValueError(f"{video.source}: {count} frames and {len(video.labels)} labels; give it whole")
    return found


def _avenue(root: Path) -> list[Labelled]:
    videos = sorted((root / "testing_videos").glob("*.avi"))
    if videos:
        masks = [next(iter(sorted(root.glob(f"**/{int(one.stem)}_label.mat"))), None) for one in videos]
        return [Labelled(str(one), _volume(mask)) for one, mask in zip(videos, masks, strict=True) if mask is not None]
    return _with_intervals(root, "avenue.mat", "testing/frames/*", RATES["avenue"])


def _ucsd(root: Path) -> list[Labelled]:
    tests = sorted(one for one in root.glob("**/Test[0-9][0-9][0-9]") if one.is_dir())
    masked = [(one, one.with_name(one.name + "_gt")) for one in tests if one.with_name(one.name + "_gt").is_dir()]
    if masked:  # of Ped1 a part alone has masks
        return [Labelled(str(one), _masks(_pictures(masks)), RATES["ucsd"]) for one, masks in masked]
    return _with_intervals(root, "ped?.mat", "testing/frames/*", RATES["ucsd"])


def _shanghaitech(root: Path) -> list[Labelled]:
    frames = sorted(one for one in root.glob("testing/frames/*_*") if one.is_dir())
    known = {path.stem: path for path in root.glob("testing/test_frame_mask/*.npy")}
    known |= {path.stem: path for path in root.glob("test_frame_mask/*.npy")}
    found = [(one, known[one.name]) for one in frames if one.name in known]
    return [
        Labelled(str(one), np.load(labels, allow_pickle=False).ravel() > 0, RATES["shanghaitech"])
        for one, labels in found
    ]


def _ubnormal(root: Path) -> list[Labelled]:
    found = []
    for one in sorted(path for path in root.glob("**/*normal_scene_*") if is_video(path)):
        masks = sorted(one.with_name(one.stem + "_annotations").rglob("*.png"))
        labels = np.zeros(count_frames(one), bool)
        if one.name.startswith("abnormal") and not masks:
            raise ValueError(f"{one}: no masks in {one.stem}_annotations beside it")
        found.append(Labelled(str(one), _masks([str(mask) for mask in masks]) if masks else labels))
    return found


def _ucf_crime(root: Path) -> list[Labelled]:
    """Lines "name class first last first last", -1 for none; ends are taken inclusive, as LAVAD does."""
    tables = sorted(root.glob("**/Temporal_Anomaly_Annotation*.txt"))
    rows = [line.split() for line in tables[0].read_text().splitlines() if line.strip()] if tables else []
    spans = {Path(row[0]).stem: [int(value) for value in row[2:]] for row in rows}
    return [_spanned(path, spans[path.stem]) for path in _files(root) if path.stem in spans]


def _xd_violence(root: Path) -> list[Labelled]:
    """Lines "name first last first last"; a name that ends in label_A is of a video without any."""
    tables = sorted(root.glob("**/annotations.txt"))
    rows = [line.split() for line in tables[0].read_text().splitlines() if line.strip()] if tables else []
    spans = {row[0].removesuffix(".mp4"): [int(value) for value in row[1:]] for row in rows}
    found = []
    for path in _files(root) if rows else []:
        if path.stem not in spans and not path.stem.endswith("label_A"):
            raise ValueError(f"{path}: no line in {tables[0].name}, and its name does not say that it is normal")
        found.append(_spanned(path, spans.get(path.stem, [])))
    return found


def _files(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("**/*") if path.is_file() and is_video(path)), key=lambda path: path.name)


def _spanned(path: Path, numbers: Sequence[int]) -> Labelled:
    """A file with (first, last) frames of what happens, from 0, both inclusive; spans beyond its end are an error."""
    count = count_frames(path)
    spans = [span for span in zip(numbers[::2], numbers[1::2], strict=True) if min(span) >= 0]
    if any(first >= count or last < first for first, last in spans):
        raise ValueError(f"{path}: labels say frames {spans}, and it holds {count}; give it whole")
    return Labelled(str(path), interval_labels(count, spans) > 0)


def _pictures(folder: str | Path) -> list[Any]:
    return [found.path for found in list_images([folder])]


def _masks(files: Sequence[Any]) -> np.ndarray:
    """bool [files]: whether anything is marked."""
    labels = []
    for file in files:
        with Image.open(str(file)) as mask:
            labels.append(bool(np.asarray(mask).any()))
    return np.array(labels)


def _volume(mask: Path) -> np.ndarray:
    from scipy.io import loadmat

    return np.array([bool(np.asarray(one).any()) for one in loadmat(str(mask))["volLabel"].ravel()])


def _with_intervals(root: Path, mat: str, frames: str, fps: float) -> list[Labelled]:
    """Folders of frames beside one file of (first, last) frames for each, counted from 1, both inclusive."""
    from scipy.io import loadmat

    files, folders = sorted(root.glob(mat)), sorted(one for one in root.glob(frames) if one.is_dir())
    if not files or not folders:
        return []
    truth = loadmat(str(files[0]))["gt"].ravel()
    if len(truth) != len(folders):
        raise ValueError(f"{files[0]}: labels of {len(truth)} videos, and {len(folders)} folders of frames")
    found = []
    for folder, spans in zip(folders, truth, strict=True):
        inclusive = [(first - 1, last - 1) for first, last in np.asarray(spans, dtype=int).reshape(2, -1).T.tolist()]
        labels = interval_labels(len(_pictures(folder)), inclusive)
        found.append(Labelled(str(folder), labels > 0, fps))
    return found


READERS: dict[str, Callable[[Path], list[Labelled]]] = {
    "avenue": _avenue,
    "shanghaitech": _shanghaitech,
    "ucsd": _ucsd,
    "ubnormal": _ubnormal,
    "ucf_crime": _ucf_crime,
    "xd_violence": _xd_violence,
}
LAYOUTS = {
    "avenue": "expected testing_videos/NN.avi with N_label.mat, or avenue.mat with testing/frames/NN/",
    "shanghaitech": "expected testing/frames/SS_VVVV/ with testing/test_frame_mask/SS_VVVV.npy",
    "ucsd": "expected TestNNN/*.tif with TestNNN_gt/*.bmp, or ped2.mat with testing/frames/NN/",
    "ubnormal": "expected Scene*/abnormal_scene_*.mp4 with *_annotations/**/*.png",
    "ucf_crime": "expected the test videos with Temporal_Anomaly_Annotation_for_Testing_Videos.txt",
    "xd_violence": "expected the test videos with annotations.txt",
}
