"""Scores pictures with a detector that `vlad export` wrote: `python examples/run_exported.py bolt.onnx photo.jpg ...`

It needs numpy, Pillow and onnxruntime, and neither torch nor VLAD. A picture is read as RGB, with its orientation, and
on white where it is transparent; what is resized by another program than Pillow scores a little differently.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def opened(file):
    """The detector's session, and what its file says of it."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["vlad"])


def square(path, about):
    """uint8 [S, S, 3] of a picture's file."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    side, how = about["side"], Image.Resampling[about["resampling"].upper()]
    return np.asarray(picture.convert("RGB").resize((side, side), how))


def verdict(score, about):
    """ "anomalous", "normal", "unsure" between two thresholds, or "uncalibrated" where there is none."""
    if about["threshold"] is None:
        return "uncalibrated"
    if about["unsure"] and about["unsure"][0] <= score < about["unsure"][1]:
        return "unsure"
    return "anomalous" if score >= about["threshold"] else "normal"


def main(file, *paths):
    session, about = opened(file)
    for path in paths:
        score, *maps = session.run(None, {"pictures": square(path, about)[None]})
        hottest = ""
        if maps:  # [1, h, w], over the whole picture
            row, column = np.unravel_index(maps[0][0].argmax(), maps[0][0].shape)
            height, width = maps[0].shape[1:]
            hottest = f"  hottest {column / width:.0%} from the left, {row / height:.0%} from the top"
        print(f"{path}  {score[0]:.6f}  {verdict(score[0], about)}{hottest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
