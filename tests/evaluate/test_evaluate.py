"""`vlad.evaluate` on small trees that the tests write, mostly with a detector whose answers are known."""

import json
import logging
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import Brightness, brightness, save, write_category

import vlad
from vlad import metrics
from vlad.datasets import folder
from vlad.datasets.samples import Sample
from vlad.evaluate import evaluate
from vlad.scorer import Scores


@pytest.fixture
def tree(tmp_path):
    write_category(tmp_path / "set" / "bolt", seed=1)
    write_category(tmp_path / "set" / "nut", seed=2)
    return tmp_path / "set"


@pytest.fixture
def bright(small_encoder):
    return brightness(small_encoder)


def pictures_of(samples, category):
    return [sample for sample in samples if sample.split == "test" and sample.category == category]


def test_values_are_those_of_the_metrics_called_by_hand(tree, bright):
    samples = folder(tree)
    report = evaluate(bright, samples, bootstrap=50)
    chosen = pictures_of(samples, "bolt")
    predictions = bright.predict([sample.image for sample in chosen])
    masks = [np.asarray(Image.open(s.mask)) if s.mask else None for s in chosen]
    maps = [prediction.full_map() for prediction in predictions]
    labels = [sample.label for sample in chosen]
    pixels = metrics.pixel_metrics(maps, masks).values
    where = {"category": "bolt"}
    assert report.value("image_auroc", **where) == metrics.auroc(np.array([p.score for p in predictions]), labels)
    assert report.value("pixel_auroc", **where) == pixels["auroc"]
    assert report.value("pixel_aupro", **where) == pixels["aupro_0.3"]
    assert report.value("pixel_ap", **where) == pixels["ap"]
    row = report.select(metric="pixel_f1_max", category="bolt")[0]
    assert (row.value, row.threshold) == (pixels["f1_max"], pixels["f1_max_threshold"])
    assert (row.n, row.normal, row.anomalous) == (11, 6, 5)


def test_mean_is_that_of_the_categories_and_lies_in_its_interval(tree, bright):
    report = evaluate(bright, folder(tree), bootstrap=200)
    both = [report.value("pixel_auroc", category=name) for name in ("bolt", "nut")]
    assert report.value("pixel_auroc") == pytest.approx(sum(both) / 2)
    mean = report.select(metric="pixel_auroc", category="mean")[0]
    assert mean.interval[0] < mean.value < mean.interval[1]
    for row in report.rows:
        assert math.isnan(row.value) or row.interval[0] <= row.interval[1]


def test_with_little_memory_values_are_within_their_stated_error_of_the_exact_ones(tree, bright):
    exact = evaluate(bright, folder(tree), bootstrap=0)
    counted = evaluate(bright, folder(tree), bootstrap=20, memory=100_000)
    for row in counted.rows:
        if row.metric.startswith("pixel"):
            truth = exact.value(row.metric, category=row.category)
            assert row.error > 0 and abs(row.value - truth) <= row.error + 1e-12
            assert row.error < (0.05 if row.metric in ("pixel_auroc", "pixel_aupro") else 0.2)
    pimo = counted.select(metric="aupimo", category="nut")[0]
    assert math.isnan(pimo.value) and "memory" in pimo.reason


def test_three_detectors_on_one_encoder_share_each_pass(tree, small_encoder, monkeypatch):
    walks = []
    embed = small_encoder.embed

    def counting(pixels, *rest):
        walks.append(1)
        return embed(pixels, *rest)

    monkeypatch.setattr(small_encoder, "embed", counting)
    packs = [{"normal": ["good {}"], "anomalous": [word]} for word in ("bad {}", "broken {}", "{} with a spot")]
    detectors = {str(i): vlad.load("patch_text", encoder=small_encoder, prompts=pack) for i, pack in enumerate(packs)}
    report = evaluate(detectors, folder(tree), bootstrap=0, batch_size=4)
    assert len(walks) == 2 * math.ceil(11 / 4)  # two categories, one walk a batch, which begins with embed
    assert report.detectors == ["0", "1", "2"]
    assert {"0", "1", "2", "reading", "metrics"} <= set(report.settings["seconds"])


def test_detectors_come_back_as_they_were(tree, small_encoder, bright):
    words = vlad.load("patch_text", "sponge", encoder=small_encoder)
    before = words.scorer.prototypes.clone()
    evaluate([words, bright], folder(tree), bootstrap=0, shots=0)
    evaluate(bright, folder(tree), bootstrap=0, shots=2, seeds=2)
    assert words.name == "sponge" and torch.equal(words.scorer.prototypes, before)
    assert bright.references == []


def test_categories_are_described_by_their_words_or_by_the_ones_given(tree, small_encoder, monkeypatch):
    said = []
    detector = vlad.load("patch_text", encoder=small_encoder)
    monkeypatch.setattr(type(detector), "describe", _noting(type(detector).describe, said))
    report = evaluate(detector, folder(tree), bootstrap=0, names={"nut": "hexagonal nut"})
    assert said == ["bolt", "hexagonal nut"]
    assert report.settings["data"]["set"]["nut"]["name"] == "hexagonal nut"
    with pytest.raises(ValueError, match=r"'nutt'; known: bolt, nut"):
        evaluate(detector, folder(tree), names={"nutt": "nut"})


def _noting(describe, said):
    def noted(self, name, prompts=None):
        said.append(name)
        return describe(self, name, prompts)

    return noted


def test_a_killed_run_goes_on_with_the_category_that_was_not_finished(tree, small_encoder, tmp_path):
    counted = []

    class Counting(Brightness):
        def forward(self, pixels):
            counted.append(len(pixels))
            return super().forward(pixels)

    whole = evaluate({"x": brightness(small_encoder, Counting)}, folder(tree), bootstrap=30)
    assert sum(counted) == 22
    counted.clear()
    seen = []

    def kill_in_the_second(category, done, total):
        seen.append(category)
        if category == "set/nut" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            {"x": brightness(small_encoder, Counting)},
            folder(tree),
            bootstrap=30,
            out=tmp_path / "out",
            progress=kill_in_the_second,
        )
    counted.clear()
    report = evaluate({"x": brightness(small_encoder, Counting)}, folder(tree), bootstrap=30, out=tmp_path / "out")
    assert sum(counted) == 11
    assert [row.to_dict() for row in report.rows] == [row.to_dict() for row in whole.rows]
    for key, drawn in whole.draws.items():
        np.testing.assert_allclose(report.draws[key], drawn, atol=1e-6)


def test_a_folder_with_other_settings_is_refused_and_says_which(tree, bright, tmp_path):
    evaluate(bright, folder(tree), bootstrap=0, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings \(bootstrap was 0, now 10\)"):
        evaluate(bright, folder(tree), bootstrap=10, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings \(data"):
        evaluate(bright, pictures_of(folder(tree), "nut"), bootstrap=0, out=tmp_path / "out")


def test_without_masks_pixel_metrics_are_nan_with_a_reason_and_left_out_of_the_mean(tree, bright):
    write_category(tree / "washer", seed=3, masks=False)
    report = evaluate(bright, folder(tree), bootstrap=0)
    row = report.select(metric="pixel_auroc", category="washer")[0]
    assert math.isnan(row.value) and "mask" in row.reason
    assert report.value("image_auroc", category="washer") > 0
    both = [report.value("pixel_auroc", category=name) for name in ("bolt", "nut")]
    assert report.value("pixel_auroc") == pytest.approx(sum(both) / 2)
    mean = report.select(metric="pixel_auroc", category="mean")[0]
    assert mean.reason == "mean of 2 of 3; without a value: washer"
    assert "n/a for 1 (set/washer)" in report.table()


def test_a_category_of_anomalous_pictures_has_pixel_metrics_only(tmp_path, bright):
    write_category(tmp_path / "set" / "bolt", normals=0)
    report = evaluate(bright, folder(tmp_path / "set"), bootstrap=20)
    row = report.select(metric="image_auroc", category="bolt")[0]
    assert math.isnan(row.value) and row.reason == "nothing is normal"
    assert report.value("pixel_auroc", category="bolt") > 0.5
    assert math.isnan(report.value("aupimo", category="bolt"))
    assert math.isnan(report.value("image_auroc"))


def test_one_picture_of_a_class_gives_numbers(tmp_path, bright):
    write_category(tmp_path / "set" / "bolt", normals=1, anomalous=1)
    report = evaluate(bright, folder(tmp_path / "set"), bootstrap=20)
    assert report.value("image_auroc", category="bolt") in (0, 1)
    assert report.value("pixel_auroc", category="bolt") > 0.5


def test_a_missing_mask_keeps_the_label_and_is_counted(tree, bright, caplog):
    (tree / "nut" / "ground_truth" / "spot" / "002_mask.png").unlink()
    with caplog.at_level(logging.WARNING):
        samples = folder(tree)
    report = evaluate(bright, samples, bootstrap=0)
    row = report.select(metric="pixel_auroc", category="nut")[0]
    assert (row.anomalous, row.empty_masks) == (5, 1)
    skipped = evaluate(bright, samples, bootstrap=0, empty_mask="skip")
    assert skipped.value("pixel_auroc", category="nut") > row.value
    assert skipped.value("image_auroc", category="nut") == report.value("image_auroc", category="nut")


def test_a_mask_of_another_size_is_resized_and_a_turned_one_refused(tree, bright, caplog):
    mask = tree / "nut" / "ground_truth" / "spot" / "001_mask.png"
    Image.open(mask).resize((32, 24), Image.Resampling.NEAREST).save(mask)
    evaluate(bright, folder(tree), bootstrap=0)
    assert "001_mask.png: mask is 24 x 32 and its picture 48 x 64; resized" in caplog.text
    Image.open(mask).resize((48, 64)).save(mask)
    with pytest.raises(vlad.ImageError, match=r"001_mask\.png"):
        evaluate(bright, folder(tree), bootstrap=0)


def test_nan_in_a_map_is_refused_with_the_file(tree, small_encoder):
    class Broken(Brightness):
        def forward(self, pixels):
            score, grid = super().forward(pixels)[:2]
            grid[0, 0, :3] = torch.nan
            return Scores(score, grid)

    with pytest.raises(ValueError, match=r"\.png: 3 of 196 values of its map are NaN or infinite"):
        evaluate(brightness(small_encoder, Broken), folder(tree))


def test_an_image_level_method_has_no_pixel_metrics(tree, small_encoder):
    class Flat(Brightness):
        def forward(self, pixels):
            return Scores(super().forward(pixels).score)

    report = evaluate(brightness(small_encoder, Flat), folder(tree), bootstrap=10)
    row = report.select(metric="pixel_aupro", category="bolt")[0]
    assert math.isnan(row.value) and "no map" in row.reason
    assert report.value("image_auroc") > 0


def test_shots_are_seeded_nested_and_the_same_for_every_detector(tree, small_encoder):
    detectors = {"a": brightness(small_encoder), "b": brightness(small_encoder, shrink=16)}
    four = evaluate(detectors, folder(tree), shots=4, seeds=3, bootstrap=0)
    two = evaluate(detectors, folder(tree), shots=2, seeds=3, bootstrap=0)
    files = four.references["a", "set", "bolt"]
    assert files == four.references["b", "set", "bolt"] and list(files) == ["0", "1", "2"]
    assert all(two.references["a", "set", "bolt"][seed] == files[seed][:2] for seed in files)
    order = np.random.RandomState(1).permutation(6)[:4]
    assert files["1"] == [f"train/good/{index:03}.png" for index in order]
    assert four.settings["detectors"]["a"]["setting"] == "4-shot"
    assert all(row.deviation is not None for row in four.rows if not math.isnan(row.value))


def test_deviation_is_that_over_the_seeds(tree, small_encoder):
    class Lucky(Brightness):
        """Its scores are as good as its first normal picture says."""

        def forward(self, pixels):
            score, grid = super().forward(pixels)[:2]
            lucky = self.memory.ids and self.memory.ids[0] in ("000.png", "001.png", "002.png")
            return Scores(score if lucky else -score, grid)

    samples = folder(tree)
    runs = [
        evaluate(brightness(small_encoder, Lucky), samples, shots=1, seeds=[seed], bootstrap=0) for seed in range(4)
    ]
    values = [run.value("image_auroc", category="nut") for run in runs]
    row = evaluate(brightness(small_encoder, Lucky), samples, shots=1, seeds=4, bootstrap=0).select(
        metric="image_auroc", category="nut"
    )[0]
    assert row.value == pytest.approx(np.mean(values)) and row.deviation == pytest.approx(np.std(values, ddof=1))
    assert row.deviation > 0
    assert runs[0].rows[0].deviation is None


def test_more_shots_than_normals_are_refused(tree, bright):
    with pytest.raises(ValueError, match=r"shots is 7, but set/bolt has 6 normal pictures"):
        evaluate(bright, folder(tree), shots=7)


def test_without_pictures_for_training_half_of_the_normal_ones_are_set_aside_and_the_report_says_so(tree, bright):
    tests = [one for one in folder(tree) if one.split == "test"]
    plain = evaluate(bright, tests, bootstrap=0)
    one, two = (evaluate(bright, tests, shots=1, seeds=seeds, bootstrap=0) for seeds in ([0], [0, 1]))
    row = plain.select(category="bolt", metric="image_auroc")[0]
    half = row.normal // 2
    found = one.select(category="bolt", metric="image_auroc")[0]
    assert (found.normal, found.anomalous) == (row.normal - half, row.anomalous)
    assert one.settings["data"]["set"]["bolt"]["set_aside"] == half
    place = (one.detectors[0], "set", "bolt")
    assert one.references[place]["0"] == two.references[place]["0"]
    assert f"of {row.normal} normal ones, {half} drawn with seed 0 are fitted on and not tested" in one.table()
    assert "set aside" not in plain.table() and "set_aside" not in plain.settings["data"]["set"]["bolt"]
    with pytest.raises(ValueError, match=f"has {half} normal pictures for training"):
        evaluate(bright, tests, shots=row.normal)


def test_a_detector_trained_on_the_tested_set_is_refused_unless_forced(tree, bright):
    samples = [replace(s, dataset="mvtec_ad") for s in folder(tree)]
    trained = bright.copy()
    trained.scorer.trained_on = ("MVTec test",)
    with pytest.raises(ValueError, match=r"trained on mvtec_ad.*force"):
        evaluate({"leaky": trained}, samples)
    report = evaluate({"leaky": trained}, samples, force=True, bootstrap=0)
    assert report.settings["detectors"]["leaky"]["leaks"] == ["mvtec_ad"]
    assert "TRAINED ON THE TESTED DATA (mvtec_ad)" in report.table()
    trained.scorer.trained_on = ("VisA", "ClinicDB")
    assert "trained on VisA, ClinicDB" in evaluate(trained, samples, bootstrap=0).table()


def test_one_picture_in_two_categories_is_refused(tree, bright):
    samples = folder(tree)
    again = Sample(samples[0].image, None, 0, "other", "good", "test")
    with pytest.raises(ValueError, match="given twice, in bolt/train and other/test"):
        evaluate(bright, [*samples, again])


def test_a_square_metric_size_resizes_maps_and_masks(tree, bright):
    samples = folder(tree)
    report = evaluate(bright, samples, metric_size=24, bootstrap=0)
    chosen = pictures_of(samples, "bolt")
    maps, masks = [], []
    for sample, prediction in zip(chosen, bright.predict([s.image for s in chosen]), strict=True):
        maps.append(np.asarray(Image.fromarray(prediction.map).resize((24, 24), Image.Resampling.BILINEAR)))
        mask = np.asarray(Image.open(sample.mask)) if sample.mask else np.zeros((48, 64), np.uint8)
        small = Image.fromarray((mask > 0).astype(np.float32)).resize((24, 24), Image.Resampling.BILINEAR)
        masks.append(np.asarray(small) > 0.5)
    assert report.value("pixel_auroc", category="bolt") == metrics.auroc(maps, masks)
    assert report.settings["metric_size"] == 24


def test_corruptions_add_rows_and_leave_the_clean_ones_alone(tree, bright):
    clean = evaluate(bright, folder(tree), bootstrap=0)
    report = evaluate(bright, folder(tree), bootstrap=0, corrupt=["noise", "shift"], severities=(1, 5))
    conditions = {row.condition for row in report.rows}
    assert conditions == {"clean", "noise 1", "noise 5", "shift 1", "shift 5"}
    for row in clean.rows:
        assert report.value(row.metric, category=row.category) == row.value or math.isnan(row.value)
    alarms = report.value("image_fpr_at_clean_threshold", category="bolt")
    assert 0 < alarms <= 0.2  # one of six normals
    assert report.value("pixel_auroc", condition="noise 5") != report.value("pixel_auroc")
    assert "by severity" in report.table()


def test_set_based_methods_see_the_whole_test_set_at_once(tree, small_encoder):
    class Together(Brightness):
        @property
        def score_set(self):
            def scored(batches):
                sizes.append(sum(map(len, kept := list(batches))))
                return map(self.forward, kept)

            return scored

    sizes = []
    report = evaluate(brightness(small_encoder, Together), folder(tree), bootstrap=0, batch_size=4)
    alone = evaluate(brightness(small_encoder), folder(tree), bootstrap=0)
    assert sizes == [11, 11]
    assert report.value("pixel_auroc") == alone.value("pixel_auroc")
    assert next(iter(report.settings["detectors"].values()))["setting"] == "batch (transductive)"


def test_views_of_one_object_count_once_at_object_level(tree, bright):

    chosen = pictures_of(folder(tree), "bolt")
    views = [replace(sample, specimen=f"{sample.label}-{index // 2}") for index, sample in enumerate(chosen)]
    report = evaluate(bright, views, bootstrap=0)
    scores = np.array([bright.predict(sample.image).score for sample in views])
    expected = metrics.per_sample(scores, [s.label for s in views], [s.specimen for s in views])
    assert report.value("specimen_auroc", category="bolt") == metrics.auroc(*expected)


def test_loco_defects_count_as_found_once_enough_of_them_is(tmp_path, bright):
    from vlad.datasets import mvtec_loco

    place = write_category(tmp_path / "loco" / "box", seed=4)
    for mask in (place / "ground_truth" / "spot").iterdir():
        save(np.asarray(Image.open(mask)), mask.with_suffix("") / "000.png")
        mask.unlink()
    for split in ("test", "ground_truth"):
        (place / split / "spot").rename(place / split / "structural_anomalies")
    for mask in list((place / "ground_truth" / "structural_anomalies").iterdir()):
        mask.rename(mask.with_name(mask.name.removesuffix("_mask")))
    config = [{"pixel_value": 255, "saturation_threshold": 1, "relative_saturation": False, "defect_name": "spot"}]
    (place / "defects_config.json").write_text(json.dumps(config))
    report = evaluate(bright, mvtec_loco(tmp_path / "loco"), bootstrap=0)
    assert report.value("spro_0.05") > report.value("pixel_aupro_0.05")  # one pixel of a spot is enough
    assert "sPRO@5%" in report.table()


def test_wrong_arguments_are_refused_in_a_sentence(tree, bright):
    samples = folder(tree)
    with pytest.raises(TypeError, match="detectors is 'winclip'"):
        evaluate("winclip", samples)
    with pytest.raises(ValueError, match="none of them a test picture"):
        evaluate(bright, [sample for sample in samples if sample.split == "train"])
    with pytest.raises(ValueError, match="metric_size is 'big'"):
        evaluate(bright, samples, metric_size="big")
    with pytest.raises(ValueError, match=r"unknown corruption 'fog'; known: noise"):
        evaluate(bright, samples, corrupt=["fog"])
    with pytest.raises(ValueError, match="at least one seed"):
        evaluate(bright, samples, shots=1, seeds=0)


def test_the_module_is_the_call(tree, bright):
    import vlad.evaluate as module

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # undefined metrics are said in rows, not in warnings
        report = module(bright, folder(tree), bootstrap=0)
    assert report.value("image_auroc") > 0


def test_real_pictures_without_masks_have_picture_metrics_only(shared, tiny_encoder):
    samples = folder(shared / "data")
    chosen = []
    for category in ("brain", "road"):
        for label in (0, 1):
            chosen += [sample for sample in pictures_of(samples, category) if sample.label == label][:3]
    report = evaluate(vlad.load("patch_text", encoder=tiny_encoder), chosen, bootstrap=20)
    assert math.isnan(report.value("pixel_auroc", dataset="brain_mri"))
    assert report.value("pixel_auroc", dataset="crackforest") > 0.6
    assert not math.isnan(report.value("image_auroc"))
    assert report.settings["data"]["crackforest"]["road"]["name"] == "asphalt road"
