"""The whole way on the real defect photos of ../shared/data: slow, and skipped where they are missing."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad import datasets, metrics
from vlad.datasets.samples import read_mask

pytestmark = pytest.mark.slow

SETS = ("aws_lookout", "brain_mri", "crackforest", "elpv", "mtd", "mvtec_ad")


@pytest.fixture(scope="module")
def samples(shared):
    return [sample for name in SETS for sample in datasets.load(f"folder:{shared / 'data' / name}")]


@pytest.fixture(scope="module")
def measured(samples, tiny_encoder):
    """Per category: image AUROC, and pixel AUROC where there are masks, of the default method."""
    samples = [s for s in samples if s.split == "test"]
    detector = vlad.load(encoder=tiny_encoder)
    image, pixel = {}, {}
    for category in sorted({s.category for s in samples}):
        chosen = [s for s in samples if s.category == category]
        predictions = detector.describe(chosen[0].name).predict([s.image for s in chosen])
        image[category] = metrics.auroc(np.array([p.score for p in predictions]), np.array([s.label for s in chosen]))
        masks = [read_mask(s) for s in chosen]
        if any(m is not None and m.any() for m in masks):
            pixel[category] = metrics.auroc([p.full_map() for p in predictions], masks)
    print(f"\nimage AUROC {image}\npixel AUROC {pixel}")
    return image, pixel


def test_tiny_finds_real_defects_it_was_never_trained_on(measured):
    image, pixel = measured
    assert len(image) == 7 and len(pixel) == 4
    assert np.mean(list(image.values())) >= 0.82
    assert np.mean(list(pixel.values())) >= 0.90


def test_eight_normals_make_both_the_memory_and_the_default_method_better(samples, tiny_encoder):
    detectors = {name: vlad.load(name, encoder=tiny_encoder) for name in ("patch_memory", "patch_text")}
    rows = vlad.evaluate(detectors, samples, shots=8, seeds=5, metric_size=112, bootstrap=0).rows
    found = {name: [r.value for r in rows if (r.detector, r.metric) == (name, "image_auroc")] for name in detectors}
    print(f"\nimage AUROC after 8 normals {found}")
    assert all(len(values) == 7 for values in found.values())
    assert np.mean(found["patch_memory"]) >= 0.86
    assert np.mean(found["patch_text"]) >= 0.87


def test_vlad_score_goes_through_all_pictures_and_names_the_broken_ones(shared, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    photo = next((shared / "data/mtd/magnetic_tile/test/break").glob("*.jpg"))
    (odd / "truncated.jpg").write_bytes(photo.read_bytes()[:3000])
    (odd / "text.png").write_text("no picture")
    grey = np.asarray(Image.open(photo).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(odd / "deep.png")
    Image.open(photo).convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    Image.open(photo).convert("RGB").save(odd / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.open(photo).convert("RGB").rotate(90, expand=True).save(odd / "turned.jpg", exif=exif, quality=95)
    Image.new("RGB", (1, 1)).save(odd / "dot.png")
    command = [sys.executable, "-m", "vlad.cli", "score", str(shared / "data/**/*.jpg"), str(odd)]
    command += ["--name", "magnetic tile", "--out", str(tmp_path / "out"), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert len(lines) == 864 + 7 and len({line["source"] for line in lines}) == 871
    odd_lines = {line["source"].rsplit("/", 1)[1]: line for line in lines[-7:]}
    assert {name for name, line in odd_lines.items() if line["error"]} == {"truncated.jpg", "text.png"}
    assert "truncated.jpg" in done.stderr and "text.png" in done.stderr
    same = odd_lines["upright.png"]["score"]
    assert odd_lines["deep.png"]["score"] == pytest.approx(same, abs=0.02)
    assert odd_lines["cmyk.jpg"]["score"] == pytest.approx(same, abs=0.1)
    assert odd_lines["turned.jpg"]["score"] == pytest.approx(same, abs=0.1)
    assert len(list((tmp_path / "out/maps").rglob("*.png"))) == 869
    shutil.rmtree(tmp_path / "out")
