"""Shares of a run, put together: lines of one process, whatever dies or tears meanwhile."""

import gzip
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import Brightness, brightness
from typer.testing import CliRunner

from vlad import scale
from vlad.cli import app
from vlad.folder import LINES, SETTINGS, score_folder
from vlad.scale.places import Place
from vlad.scale.plan import Plan

DEADLY = 250  # level of a picture that kills its process


class Poisoned(Brightness):
    """Dies at a picture that is nearly white."""

    def pixels(self, pictures):
        if any(picture.min() >= DEADLY for picture in pictures):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(pictures)


class Mortal(Brightness):
    """Dies once it has seen so many pictures."""

    after = 1000

    def pixels(self, pictures):
        if self.seen + len(pictures) > self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(pictures)


def photo(path, level):
    Image.fromarray(np.full((24, 32, 3), level, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Nineteen, the twelfth of which is broken."""
    (tmp_path / "in").mkdir()
    for number in range(19):
        photo(tmp_path / "in" / f"{number}.png", 40 + 8 * number)
    (tmp_path / "in" / "11.png").write_text("not a picture")
    return tmp_path / "in"


@pytest.fixture
def run(small_encoder, pictures, tmp_path):
    """A function: a share of the pictures scored into "run"."""

    def scored(detector=None, **how):
        how = {"shard_size": 4, "batch_size": 2, **how}
        return scale.score(detector or brightness(small_encoder), [pictures], tmp_path / "run", **how)

    return scored


def content(folder):
    """All that a scored folder holds for its user."""
    files = [folder / LINES, folder / SETTINGS, *sorted((folder / "maps").rglob("*.png"))]
    return {file.relative_to(folder): file.read_bytes() for file in files}


def forked(work):
    """A process that does this work; its number."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # the threads that the parent has started are not there, and would be waited for
        work()
        os._exit(0)
    return child


def ended(child):
    """0 if the process has come to its end by itself."""
    return os.waitpid(child, 0)[1]


def deaths_until_done(work):
    """How often a process that does this work is killed until one comes to its end."""
    for deaths in range(40):
        if ended(forked(work)) == 0:
            return deaths
    raise AssertionError("no end")


@pytest.mark.parametrize("threshold", [None, 0.5, "auto"])
def test_two_shares_gathered_are_the_folder_of_one_process(run, pictures, small_encoder, tmp_path, threshold):
    score_folder(brightness(small_encoder), [pictures], tmp_path / "one", batch_size=2, threshold=threshold)
    done = [run(share=(i, 2), threshold=threshold) for i in (1, 0)]
    assert [one.scored for one in done] == [8, 10] and len(done[1].failed) == 1
    summary = scale.gather(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "one")
    assert summary.scored == 18 and [source.split("/")[-1] for source, _ in summary.failed] == ["11.png"]


def test_what_a_killed_process_left_is_gone_on_with_and_leaves_no_litter(run, pictures, small_encoder, tmp_path):
    score_folder(brightness(small_encoder, Mortal), [pictures], tmp_path / "one", batch_size=2)

    def die_amid_a_shard():
        Mortal.after = 6  # after another one
        run(brightness(small_encoder, Mortal), resume=True)

    assert all(ended(forked(die_amid_a_shard)) != 0 for _ in range(3))
    run(brightness(small_encoder, Mortal), resume=True)
    scale.gather(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "one")
    assert {file.name for file in (tmp_path / "run").iterdir()} == {LINES, SETTINGS, "maps", "parts", "plan.json"}


def test_a_picture_that_kills_its_process_costs_four_tries_and_itself_alone(run, pictures, small_encoder, tmp_path):
    score_folder(brightness(small_encoder), [pictures], tmp_path / "one", batch_size=2)
    photo(pictures / "5.png", 255)
    assert deaths_until_done(lambda: run(brightness(small_encoder, Poisoned), resume=True)) == 4
    scale.gather(tmp_path / "run")
    ours, theirs = ([json.loads(line) for line in (tmp_path / one / LINES).open()] for one in ("run", "one"))
    assert "died 2 times at this picture" in ours[5]["error"]
    assert [line for line in ours if line is not ours[5]] == [line for line in theirs if line is not theirs[5]]


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def shortened(path):
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[1:])))


def foreign(path):
    changed = gzip.decompress(path.read_bytes()).replace(b'"plan": "', b'"plan": "0')
    path.write_bytes(gzip.compress(changed))


@pytest.mark.parametrize("harm", [cut, shortened, foreign, lambda path: path.unlink()])
def test_a_part_that_is_not_whole_is_missed_and_done_again(run, tmp_path, harm):
    run()
    part = tmp_path / "run" / "parts" / "000003.jsonl.gz"
    before = part.read_bytes()
    harm(part)
    assert scale.missing(tmp_path / "run") == [3]
    with pytest.raises(RuntimeError, match=r"shard 3 .* is not done"):
        scale.gather(tmp_path / "run")
    assert run(resume=True).scored == 4 and part.read_bytes() == before


def test_a_changed_picture_and_a_lost_overlay_have_their_shards_done_again(run, pictures, tmp_path):
    run()
    photo(pictures / "0.png", 200)
    (tmp_path / "run" / "maps" / "18.png.png").unlink()
    assert (summary := run(resume=True)).scored == 4 + 3 and summary.skipped == 12
    assert run(resume=True).scored == 0


def test_another_list_other_settings_and_results_of_one_process_are_refused(run, pictures, small_encoder, tmp_path):
    run(share=(0, 2))
    with pytest.raises(FileExistsError, match="holds parts"):
        run(share=(0, 2))
    with pytest.raises(ValueError, match=r"settings\.threshold was null, now 0\.5"):
        run(share=(1, 2), threshold=0.5)
    with pytest.raises(ValueError, match="shard_size was 4, now 8"):
        run(share=(1, 2), shard_size=8)
    photo(pictures / "19.png", 9)
    with pytest.raises(ValueError, match="pictures was 19, now 20"):
        run(share=(1, 2))
    score_folder(brightness(small_encoder), [pictures], tmp_path / "one")
    with pytest.raises(FileExistsError, match="without shards"):
        scale.score(brightness(small_encoder), [pictures], tmp_path / "one", resume=True)


def test_wrong_shares_and_sizes_are_refused(run):
    for how, words in (
        ({"share": (2, 2)}, "the share is 2/2"),
        ({"shard_size": 3}, "no multiple of the batch of 2"),
        ({"share": (0, 2), "ray": "local"}, "give one of the two"),
    ):
        with pytest.raises(ValueError, match=words):
            run(**how)


def test_two_processes_on_one_shard_do_each_other_no_harm(run, tmp_path):
    children = [forked(lambda: run(resume=True)) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    run(resume=True)
    assert scale.missing(tmp_path / "run") == [] and scale.gather(tmp_path / "run").scored == 18


def test_the_command_names_what_is_missing_and_gathers_what_is_whole(run, tmp_path):
    run(share=(0, 2))
    said = CliRunner().invoke(app, ["gather", str(tmp_path / "run")])
    assert said.exit_code == 1 and "2 shards are not done: 1, 3;" in said.stderr
    run(share=(1, 2))
    said = CliRunner().invoke(app, ["gather", str(tmp_path / "run"), "--csv", "--page"])
    assert said.exit_code == 1 and "18 pictures scored (18 uncalibrated), 1 failed" in said.stdout
    assert (tmp_path / "run" / "results.csv").exists() and (tmp_path / "run" / "index.html").exists()
    said = CliRunner().invoke(app, ["gather", str(tmp_path)])
    assert said.exit_code == 2 and "holds no plan.json" in said.stderr


def test_score_takes_a_share_only_with_a_folder_and_in_its_form(pictures):
    refused = [
        (["--share", "0/2"], "name it with --out"),
        (["--share", "1", "--out", "x"], "expected I/N"),
        (["--ray", "local", "--out", "x", "--page"], "give --csv and --page to `vlad gather`"),
    ]
    for flags, words in refused:
        said = CliRunner().invoke(app, ["score", str(pictures), "--name", "bolt", *flags])
        assert said.exit_code == 2 and words in said.stderr


def test_parquet_holds_what_the_lines_say(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    run()
    scale.gather(tmp_path / "run", parquet=True)
    rows = parquet.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "run" / LINES).open()]
    keys = ("source", "score", "verdict", "size", "error")
    assert [[row[key] for key in keys] for row in rows] == [[line[key] for key in keys] for line in lines]
    assert [one["box"] for one in rows[0]["regions"]] == [one["box"] for one in lines[0]["regions"]]


def test_the_plan_says_nothing_of_another_format(run, tmp_path):
    run()
    plan = tmp_path / "run" / "plan.json"
    plan.write_text(plan.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"holds no plan\.json that can be read"):
        Plan.read(Place.of(tmp_path / "run"))


def test_neither_ray_nor_pyarrow_is_loaded_without_need():
    code = "import sys, vlad.scale; sys.exit(bool({'ray', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
