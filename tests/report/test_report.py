"""Reports: means, comparisons, files, the page; and the statistics under them."""

import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats
from small_sets import brightness, write_category

from vlad.datasets import folder
from vlad.evaluate import evaluate
from vlad.metrics import resampling
from vlad.report import Report, Row
from vlad.report.published import published, why_not


@pytest.fixture(scope="module")
def report(tmp_path_factory, small_encoder):
    place = tmp_path_factory.mktemp("trees")
    write_category(place / "screws" / "bolt", seed=1)
    write_category(place / "screws" / "nut <b>", seed=2)
    write_category(place / "discs" / "washer", seed=3, masks=False)
    detectors = {"fine": brightness(small_encoder), "coarse & slow": brightness(small_encoder, shrink=28)}
    return evaluate(detectors, folder(place), bootstrap=100, corrupt=["blur"], severities=(1, 5))


def row(category, value, dataset="set", detector="a", metric="image_auroc"):
    return Row(detector, dataset, category, metric, value, 10, 5, 5)


def small_report(rows, draws=None):
    labels = dict.fromkeys(one.detector for one in rows)
    detectors = {label: {"setting": "zero-shot"} for label in labels}
    return Report(tuple(rows), {"detectors": detectors, "data": {}, "corrupt": []}, draws=draws or {})


def test_means_are_over_categories_then_over_data_sets():
    rows = [row("x", 0.5), row("y", 0.7), row("z", math.nan), row("w", 1.0, "other")]
    means = {(one.dataset, one.category): one for one in small_report(rows).mean()}
    assert means["set", "mean"].value == pytest.approx(0.6)
    assert means["set", "mean"].reason == "mean of 2 of 3; without a value: z"
    assert means["all", "mean"].value == pytest.approx(0.8)


def test_a_mean_of_nothing_is_nan_and_of_one_category_its_value():
    assert math.isnan(small_report([row("x", math.nan)]).value("image_auroc"))
    assert small_report([row("x", 0.25)]).value("image_auroc") == 0.25


def test_an_ambiguous_question_is_an_error():
    rows = [row("x", 0.5), row("x", 0.6, detector="b")]
    with pytest.raises(ValueError, match="2 rows of image_auroc fit"):
        small_report(rows).value("image_auroc")
    with pytest.raises(ValueError, match="did you mean 'image_auroc'"):
        small_report(rows).value("image_auroq", detector="a")


def test_ten_categories_are_compared_by_the_signed_rank_test():
    random = np.random.default_rng(0)
    first, second = random.random(12), random.random(12)
    rows = [row(str(i), value) for i, value in enumerate(first)]
    rows += [row(str(i), value, detector="b") for i, value in enumerate(second)]
    (one,) = small_report(rows).compare(["image_auroc"])
    assert one.difference.test == "Wilcoxon"
    assert one.difference.p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert one.difference.mean == pytest.approx((first - second).mean())
    assert one.difference.wins == int((first > second).sum())


def test_a_detector_does_not_differ_from_itself_and_differs_from_a_worse_one():
    draws = np.random.default_rng(0).normal(0.8, 0.02, 500)
    same = resampling.paired([0.8], [0.8], draws, draws)
    assert (same.mean, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    worse = resampling.paired([0.8], [0.6], draws, draws - 0.2)
    assert worse.p < 0.01 and worse.interval == pytest.approx((0.2, 0.2))


def test_holm_is_the_hand_worked_example():
    assert resampling.holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(resampling.holm([math.nan])[0])


def test_draws_keep_the_number_of_each_label():
    labels = [0, 1, 1, 0, 1]
    taken = resampling.stratified(labels, 300)
    assert (taken[:, [0, 3]].sum(1) == 2).all() and (taken[:, [1, 2, 4]].sum(1) == 3).all()
    np.testing.assert_array_equal(taken, resampling.stratified(labels, 300))


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered, truth = 0, stats.norm.cdf(1 / math.sqrt(2))
    labels = np.repeat([0, 1], 40)
    for _ in range(60):
        scores = np.concatenate([random.normal(0, 1, 40), random.normal(1, 1, 40)])
        drawn = resampling.score_draws(scores, labels, resampling.stratified(labels, 100))["auroc"]
        low, high = resampling.interval(drawn)
        covered += low <= truth <= high
    assert covered >= 50  # 95 % of 60 is 57; fewer than 50 has a chance below 1 in 1000


def test_pixel_draws_are_the_metrics_of_the_drawn_pictures():
    from vlad import metrics
    from vlad.metrics import stream as metrics_stream

    random = np.random.default_rng(2)
    maps, masks = random.random((6, 12, 12)), random.random((6, 12, 12)) > 0.9
    masks[:3] = False
    edges = np.unique(maps)  # every score is a bin of its own
    counted = [metrics_stream.histogram([one], [mask], edges) for one, mask in zip(maps, masks, strict=True)]
    taken = resampling.stratified([0, 0, 0, 1, 1, 1], 5)
    drawn = resampling.pixel_draws(counted, taken, {"aupro": 0.3})
    for number, times in enumerate(taken):
        chosen = np.repeat(np.arange(6), times)
        exact = metrics.pixel_metrics(maps[chosen], masks[chosen]).values
        assert drawn["auroc"][number] == pytest.approx(exact["auroc"])
        assert drawn["ap"][number] == pytest.approx(exact["ap"])
        assert drawn["aupro"][number] == pytest.approx(exact["aupro_0.3"])


def test_saved_numbers_are_those_of_the_report(report, tmp_path):
    place = report.save(tmp_path / "out")
    kept = json.loads((place / "report.json").read_text())
    assert [Row.from_dict(one).to_dict() for one in kept["rows"]] == [one.to_dict() for one in report.rows]
    assert any(one["value"] is None and one["reason"] for one in kept["rows"])
    with (place / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report.rows) + len(report.mean())
    assert [line["value"] for line in lines[:3]] == [str(one.value) for one in report.rows[:3]]
    again = Report.load(place)
    assert [one.to_dict() for one in again.rows] == [one.to_dict() for one in report.rows]
    assert again.value("image_auroc", detector="fine") == report.value("image_auroc", detector="fine")


def test_names_that_a_spreadsheet_would_compute_are_texts_in_its_tables(tmp_path, small_encoder):
    write_category(tmp_path / "set" / "=1+1", seed=1)
    made = evaluate({"@SUM(1)": brightness(small_encoder)}, folder(tmp_path / "set"), bootstrap=0)
    place = made.save(tmp_path / "out")
    for name in ("report.csv", "predictions.csv"):
        with (place / name).open() as file:
            cells = {value for line in csv.reader(file) for value in line}
        assert {"'@SUM(1)", "'=1+1"} <= cells and not {"@SUM(1)", "=1+1"} & cells


class Balanced(HTMLParser):
    """Counts elements and refuses one that is closed out of order."""

    void = ("meta", "img", "br", "line", "rect", "path", "circle")

    def __init__(self):
        super().__init__()
        self.open, self.count = [], {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_stands_alone_is_well_formed_and_shows_pictures_and_curves(report, tmp_path):
    text = (report.save(tmp_path) / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and "url(" not in text and "@import" not in text
    assert "nut <b>" not in text and "coarse &amp; slow" in text
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    categories, kinds_shown = 3, 4 + 4 + 4
    assert parser.count["img"] == 2 * categories * 2 * kinds_shown  # two detectors, photo and map
    assert parser.count["svg"] >= 3 + 3 + 2
    assert len(text) < 4_000_000


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium to lay the page out")
def test_nothing_on_the_page_is_wider_than_its_window(report, tmp_path):
    from vlad.report.page import page

    data = {"mvtec_ad": {"x": {"name": "x", "normal": 467, "anomalous": 1258, "train": 0}}}
    data["mvtec_ad"] |= {str(i): {"name": "x", "normal": 0, "anomalous": 0, "train": 0} for i in range(14)}
    text = page(Report(report.rows, {**report.settings, "data": data}))
    wide = "[...document.querySelectorAll('.card')].map(e => e.scrollWidth - e.clientWidth)"
    text = text.replace("</body>", f"<script>document.title = 'too wide by ' + Math.max(...{wide})</script></body>")
    (tmp_path / "page.html").write_text(text)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1120,900", "--dump-dom"]
    done = subprocess.run([*command, str(tmp_path / "page.html")], capture_output=True, text=True, timeout=120)
    assert "<title>too wide by 0</title>" in done.stdout


def test_the_table_is_in_percent_and_names_settings_and_gaps(report):
    text = report.table()
    assert "fine: zero-shot, encoder local-dir:" in text
    assert f"{100 * report.value('pixel_auroc', detector='fine', category='bolt'):.1f}" in text
    assert "n/a for 1 (discs/washer): no picture of this category has a mask" in text
    assert "image AUROC on changed pictures, by severity" in text and "peak memory" in text


def test_a_subset_is_never_compared_with_published_numbers():
    whole = {str(i): {"normal": 0, "anomalous": 0} for i in range(15)}
    whole["0"] = {"normal": 467, "anomalous": 1258}
    assert why_not("mvtec_ad", whole) == ""
    assert "not the whole set: 1 categories with 41 normal" in why_not(
        "mvtec_ad", {"s": {"normal": 41, "anomalous": 58}}
    )
    assert "no published table" in why_not("aws_lookout", whole)


def test_published_numbers_are_shares_with_setting_and_source():
    found = published("mvtec_ad")
    paper = next(one for one in found if one.method == "AnomalyCLIP" and "table 1" in one.source)
    assert (paper.setting, paper.train_data) == ("zero-shot", "VisA")
    assert paper.values["image_auroc"] == pytest.approx(0.915)
    assert all(one.source and one.setting for one in found)
    assert all(0 <= value <= 1 for one in found for value in one.values.values())


def test_the_page_puts_whole_sets_beside_published_numbers(report):
    from vlad.report.page import page

    data = {"mvtec_ad": {"x": {"name": "x", "normal": 467, "anomalous": 1258, "train": 0}}}
    data["mvtec_ad"] |= {str(i): {"name": "x", "normal": 0, "anomalous": 0, "train": 0} for i in range(14)}
    text = page(Report(report.rows, {**report.settings, "data": data}))
    assert "this run" in text and "Industrial.png (paper table 1)" in text and "PromptAD" in text
    assert "this run" not in page(report)


def test_joined_reports_keep_all_rows_and_add_up_seconds(report, tmp_path):
    other = Report(tuple(replace(one, detector=f"{one.detector} 2") for one in report.rows), {**report.settings})
    other.settings["detectors"] = {f"{label} 2": one for label, one in report.settings["detectors"].items()}
    twice = Report.join([report, other.save(tmp_path)], "both")
    assert len(twice.rows) == 2 * len(report.rows) and twice.settings["title"] == "both"
    assert twice.settings["seconds"]["fine"] == pytest.approx(2 * report.settings["seconds"]["fine"])
    assert twice.detectors == ["fine", "coarse & slow", "fine 2", "coarse & slow 2"]
    assert twice.value("image_auroc", detector="fine 2") == report.value("image_auroc", detector="fine")


def test_reports_that_do_not_belong_together_are_refused(report):
    with pytest.raises(ValueError, match="two of the reports have coarse & slow on discs/washer"):
        Report.join([report, report])
    other = Report((), {**report.settings, "metric_size": 256})
    with pytest.raises(ValueError, match='different metric_size: "native", 256'):
        Report.join([report, other])
    with pytest.raises(ValueError, match="no report to join"):
        Report.join([])


def test_joined_reports_compare_detectors_that_were_run_apart(report, tmp_path):
    apart = []
    for label in report.detectors:
        own = {key: value for key, value in report.draws.items() if key[0] == label}
        settings = {**report.settings, "detectors": {label: report.settings["detectors"][label]}}
        apart.append(Report(tuple(one for one in report.rows if one.detector == label), settings, draws=own))
    assert Report.join([one.save(tmp_path / str(i)) for i, one in enumerate(apart)]).compare() == report.compare()


def test_a_loaded_report_shows_and_compares_what_the_saved_one_did(report, tmp_path):
    again = Report.load(report.save(tmp_path / "first"))
    assert again.compare() == report.compare() and again.to_dict() == report.to_dict()
    again.save(tmp_path / "second")
    for name in ("report.html", "report.json", "report.csv"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()


def test_names_with_slashes_come_back_as_they_were(report, tmp_path):
    label, (_, dataset, _) = "text, ViT-B-16/openai", next(iter(report.curves))
    settings = {**report.settings, "detectors": {label: report.settings["detectors"]["fine"]}}
    key = (label, dataset, "a/b")
    saved = Report(
        (row("x", 0.5, detector=label),),
        {**settings, "corrupt": []},
        curves={key: {}},
        references={key: {"0": ["c/d.png"]}},
    ).save(tmp_path)
    assert set(Report.load(saved).references) == set(Report.load(saved).curves) == {key}


def test_a_printed_report_is_its_table_and_its_short_form_one_line(report):
    assert str(report) == report.table() and len(repr(report)) < 200
    assert repr(report).startswith("Report(fine, coarse & slow; 3 categories")


def test_tables_for_papers_have_the_means_in_percent_and_the_best_in_bold(report):
    lines = report.to_markdown(["image_auroc", "pixel_auroc"]).splitlines()
    assert lines[0] == "|  | image AUROC | pixel AUROC |" and lines[1] == "| --- | ---: | ---: |" and len(lines) == 4
    values = {label: report.value("pixel_auroc", detector=label) for label in report.detectors}
    best = max(values, key=values.get)
    assert f"**{100 * values[best]:.1f}**" in next(line for line in lines if line.startswith(f"| {best} |"))
    tex = report.to_latex(["image_auroc", "pixel_auroc"])
    assert tex.startswith("\\begin{tabular}{lrr}\n\\toprule\n") and "coarse \\& slow & " in tex
    assert f"\\textbf{{{100 * values[best]:.1f}}}" in tex
    assert len(report.to_markdown(categories=True).splitlines()) == 2 + 2 * len(
        ("bolt", "nut", "washer", "mean", "all")
    )


def test_one_detector_has_nothing_in_bold_and_names_of_categories_are_escaped(report):
    alone = Report(
        tuple(one for one in report.rows if one.detector == "fine"),
        {**report.settings, "detectors": {"fine": report.settings["detectors"]["fine"]}},
    )
    assert "**" not in alone.to_markdown() and "textbf" not in alone.to_latex()
    assert "| screws/bolt |" in alone.to_markdown(["image_auroc"], categories=True)
    assert "100\\% \\_a\\$" in small_report([row("x", 0.5, detector="100% _a$")]).to_latex()
