"""Lists, tar files and object stores as inputs, stores as outputs, and streams that end too soon."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import Brightness, brightness
from typer.testing import CliRunner

from vlad import scale
from vlad.cli import app
from vlad.folder import LINES, score_folder
from vlad.scale import places
from vlad.scale.inputs import listed
from vlad.scale.places import Place, address

HOW = {"shard_size": 4, "batch_size": 2}


@pytest.fixture
def pictures(tmp_path):
    """Eleven in two folders, the sixth of which is broken."""
    for number in range(11):
        file = tmp_path / "in" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 200, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(file)
    (tmp_path / "in" / "b" / "5.png").write_text("not a picture")
    return tmp_path / "in"


@pytest.fixture
def wanted(pictures, small_encoder, tmp_path):
    """Name below the input folder -> (score, whether it is broken), of one process."""
    score_folder(brightness(small_encoder), [pictures], tmp_path / "one", batch_size=2)
    return by_name((tmp_path / "one" / LINES).read_bytes())


def by_name(content):
    lines = map(json.loads, content.splitlines())
    return {"/".join(line["source"].split("/")[-2:]): (line["score"], line["error"] is None) for line in lines}


def tarred(pictures, file):
    with tarfile.open(file, "w") as tar:
        for path in sorted(pictures.rglob("*.png")):
            tar.add(path, path.relative_to(pictures))
            text = tarfile.TarInfo(f"{path.relative_to(pictures).with_suffix('.json')}")
            text.size = 3
            tar.addfile(text, io.BytesIO(b"{ }"))
    return file


def a_csv(pictures, file):
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["batch", "Path"])
        rows.writerows([7, os.path.relpath(path, file.parent)] for path in sorted(pictures.rglob("*.png")))
    return file


def a_parquet(pictures, file):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"image": [str(path) for path in sorted(pictures.rglob("*.png"))]}), file)
    return file


@pytest.mark.parametrize(("make", "name"), [(a_csv, "list.csv"), (a_parquet, "list.parquet"), (tarred, "in.tar")])
def test_lists_and_tar_files_are_scored_as_the_folder_is(make, name, pictures, wanted, small_encoder, tmp_path):
    given = make(pictures, tmp_path / name)
    for i in (0, 1):
        scale.score(brightness(small_encoder), [given], tmp_path / "run", share=(i, 2), **HOW)
    scale.gather(tmp_path / "run")
    assert by_name((tmp_path / "run" / LINES).read_bytes()) == wanted
    broken = next(line for line in map(json.loads, (tmp_path / "run" / LINES).open()) if line["error"])
    assert "5.png" in broken["error"] and "vlad-" not in broken["error"]
    assert len(list((tmp_path / "run" / "maps").rglob("*.png"))) == 10
    again = scale.score(brightness(small_encoder), [given], tmp_path / "run", resume=True, **HOW)
    assert (again.scored, again.skipped) == (0, 11)


def test_a_tar_file_that_is_cut_is_refused_wherever_it_is_cut(pictures, tmp_path):
    whole = tarred(pictures, tmp_path / "in.tar")
    content, ends = whole.read_bytes(), []
    with tarfile.open(whole) as tar:
        ends = [one.offset for one in tar][1:]
    for end in [*ends, ends[0] + 100, ends[3] + 512, ends[-1] + 700]:
        whole.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut short|damaged"):
            listed([whole], Place.of(tmp_path / "run"), "first", Counter())
    whole.write_bytes(content[: ends[-1]] + bytes(1024))  # what a tar file with fewer members is
    assert len(listed([whole], Place.of(tmp_path / "run"), "first", Counter())) > 5


def test_a_tar_file_that_changes_between_listing_and_scoring_gives_no_half_picture(pictures, small_encoder, tmp_path):
    file = tarred(pictures, tmp_path / "in.tar")
    cut = file.read_bytes()[: file.stat().st_size // 2]

    class Later(Brightness):
        __module__, then = Brightness.__module__, True

        def forward(self, pixels):
            if self.then:
                file.write_bytes(cut)
            return super().forward(pixels)

    done = scale.score(brightness(small_encoder, Later), [file], tmp_path / "run", **HOW)
    Later.then = False
    said = [reason for _, reason in done.failed if "could not be fetched" in reason]
    assert said and all("ends too soon" in reason for reason in said)
    file = tarred(pictures, tmp_path / "in.tar")
    done = scale.score(brightness(small_encoder, Later), [file], tmp_path / "run", resume=True, **HOW)
    assert len(done.failed) == 1 and scale.gather(tmp_path / "run").scored == 10


def test_wrong_lists_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("name,label\nx.png,1\n")
    (tmp_path / "a.parquet").write_text("no table")
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b\x08" + bytes(2000))
    for name, words in (
        ("a.csv", "has the columns name, label; expected one of path, image"),
        ("a.parquet", "no Parquet table|need pyarrow"),
        ("b.tar", "compressed ones are not taken|damaged"),
    ):
        command = ["score", str(tmp_path / name), "--name", "bolt", "--out", str(tmp_path / "run"), "--share", "0/1"]
        said = CliRunner().invoke(app, command)
        assert said.exit_code == 2 and re.search(words, said.stderr), said.stderr
        said = CliRunner().invoke(app, command[:4])
        assert said.exit_code == 2 and "add --share 0/1" in said.stderr


def test_addresses_are_known_also_where_a_path_was_made_of_them():
    assert address(Path("s3://bucket/a/b.png")) == "s3://bucket/a/b.png"
    assert [address(one) for one in ("a/b.png", "/a", "file:///a", r"c:\a", "C:/a")] == [None] * 5


# ---- an object store ------------------------------------------------------------------------------------------------


class Wire:
    """A connection to the store that is cut after so many bytes, one way or the other, or not."""

    def __init__(self, port):
        self.port, self.cut = (
            port,
            {},
        )  # name in a request -> (b"up" or b"down", bytes), cut each time while it is there
        self.cuts = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def serve(self):
        while True:
            near, _ = self.server.accept()
            threading.Thread(target=self.pass_on, args=(near,), daemon=True).start()

    def pass_on(self, near):
        far = socket.create_connection(("127.0.0.1", self.port))
        left = {"up": None, "down": None}

        def pump(one, other, way):
            try:
                while content := one.recv(1 << 16):
                    if way == "up":
                        line = content.partition(b"\r\n")[0]
                        for name, (verb, where, size) in self.cut.items():
                            if line.startswith(verb + b" ") and name.encode() in line:
                                left[where] = size
                    if left[way] is not None:
                        left[way] -= len(content)
                        if left[way] <= 0:
                            self.cuts += 1
                            other.sendall(content[: left[way] or None])
                            break
                    other.sendall(content)
            except OSError:
                pass
            for end in (one, other):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=pump, args=(far, near, "down"), daemon=True).start()
        pump(near, far, "up")


@pytest.fixture(scope="module")
def wire():
    """To a local S3 server with one bucket."""
    pytest.importorskip("pyarrow.fs", reason="needs the extra parquet")
    moto = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors, which .ci/run installs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    made = Wire(server.get_host_and_port()[1])
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{made.address}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(key, value)
        patch.setattr(places, "WAIT", 0.01)
        import boto3

        boto3.client("s3").create_bucket(Bucket="plant")
        yield made
    server.stop()


@pytest.fixture
def bucket(wire, request):
    """A folder of the bucket for each test, by a wire that is whole again."""
    yield f"s3://plant/{request.node.name.partition('[')[0]}"
    wire.cut.clear()


def stored(folder, bucket):
    for file in folder.rglob("*"):
        if file.is_file():
            Place.of(bucket).put(file.relative_to(folder).as_posix(), file.read_bytes())


def test_a_bucket_is_scored_into_a_bucket_as_a_folder_into_a_folder(bucket, pictures, wanted, small_encoder):
    stored(pictures, f"{bucket}/in")
    for i in (0, 1):
        done = scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", share=(i, 2), **HOW)
        assert done.scored + len(done.failed) in (7, 4)
    assert scale.missing(f"{bucket}/run") == []
    assert scale.gather(f"{bucket}/run", parquet=True).scored == 10
    run = Place.of(f"{bucket}/run")
    assert by_name(run.read(LINES)) == wanted
    assert run.names("") == ["plan.json", LINES, "results.parquet", "settings.json"] and len(run.names("maps/a")) == 6
    again = scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", resume=True, **HOW)
    assert (again.scored, again.skipped) == (0, 11)
    with pytest.raises(ValueError, match=r"settings\.threshold was null, now 0\.5"):
        scale.score(brightness(small_encoder), [f"{bucket}/in"], str(run), resume=True, threshold=0.5, **HOW)


def test_a_tar_file_and_a_list_in_a_bucket_are_inputs(bucket, pictures, wanted, small_encoder, tmp_path):
    tarred(pictures, tmp_path / "in.tar")
    Place.of(bucket).put("in.tar", (tmp_path / "in.tar").read_bytes())
    stored(pictures, f"{bucket}/in")
    named = [f"in/{path.relative_to(pictures)}" for path in sorted(pictures.rglob("*.png"))]
    Place.of(bucket).put("in.csv", "\n".join(["path", *named, "in/a/absent.png"]).encode())
    for name in ("in.tar", "in.csv"):
        out = tmp_path / f"run-{name}"
        done = scale.score(brightness(small_encoder), [f"{bucket}/{name}"], out, **HOW)
        scale.gather(out)
        found = by_name((out / LINES).read_bytes())
        assert found.pop("a/absent.png", (None, False)) == (None, False) and found == wanted
    assert "is no longer there" in dict(done.failed)[f"{bucket}/in/a/absent.png"]


@pytest.mark.slow
def test_the_command_takes_and_gathers_addresses(bucket, pictures, tmp_path):
    stored(pictures, f"{bucket}/in")
    command = [sys.executable, "-c", "from vlad.cli import main; main()"]
    given = ["score", f"{bucket}/in", "--name", "bolt", "--out", f"{bucket}/run", "--share", "0/1"]
    said = subprocess.run([*command, *given], capture_output=True, text=True)
    assert said.returncode == 1 and "10 pictures scored" in said.stdout, said.stderr
    said = subprocess.run([*command, "gather", f"{bucket}/run", "--page"], capture_output=True, text=True)
    assert said.returncode == 1 and "10 pictures scored" in said.stdout, said.stderr
    assert b"maps/" in Place.of(f"{bucket}/run").read("index.html")


@pytest.mark.slow  # a client tries a cut stream again for 20 s
def test_pictures_whose_streams_are_cut_are_fetched_again_and_never_half(wire, bucket, pictures, wanted, small_encoder):
    stored(pictures, f"{bucket}/in")
    wire.cut = {"in/a/2.png": (b"GET", "down", 900), "in/b/7.png": (b"GET", "down", 1500)}
    before = wire.cuts
    done = scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", **HOW)
    assert wire.cuts > before + 1 and len(done.failed) == 3
    assert sum("could not be fetched" in reason for _, reason in done.failed) == 2
    wire.cut.clear()
    done = scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", resume=True, **HOW)
    assert len(done.failed) == 1 and done.skipped == 4  # the shards without such a picture
    scale.gather(f"{bucket}/run")
    assert by_name(Place.of(f"{bucket}/run").read(LINES)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts/000001", "maps/a/4.png", "plan.json"])
def test_what_arrives_in_half_is_never_taken_for_whole(wire, bucket, pictures, wanted, small_encoder, name):
    bucket = f"{bucket}/{name}"
    stored(pictures, f"{bucket}/in")
    wire.cut = {f"run/{name}": (b"PUT", "up", 700)}
    before = wire.cuts
    with pytest.raises(OSError, match="cannot be written"):
        scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", **HOW)
    assert wire.cuts > before
    wire.cut.clear()
    if name != "plan.json":
        assert 1 in scale.missing(f"{bucket}/run")
    scale.score(brightness(small_encoder), [f"{bucket}/in"], f"{bucket}/run", resume=True, **HOW)
    scale.gather(f"{bucket}/run")
    assert by_name(Place.of(f"{bucket}/run").read(LINES)) == wanted


@pytest.mark.parametrize("size", [30, -20])
def test_a_part_that_lies_there_in_half_is_missing(bucket, pictures, wanted, small_encoder, size):
    stored(pictures, f"{bucket}/in")
    run = Place.of(f"{bucket}/run{size}")
    scale.score(brightness(small_encoder), [f"{bucket}/in"], str(run), **HOW)
    part = run.read("parts/000001.jsonl.gz")
    run.put("parts/000001.jsonl.gz", part[:size])
    assert scale.missing(str(run)) == [1]
    scale.score(brightness(small_encoder), [f"{bucket}/in"], str(run), resume=True, **HOW)
    assert run.read("parts/000001.jsonl.gz") == part


def test_other_stores_are_reached_by_fsspec(pictures, wanted, small_encoder):
    pytest.importorskip("pyarrow.fs", reason="needs the extra parquet")
    stored(pictures, "memory://plant/in")
    scale.score(brightness(small_encoder), ["memory://plant/in"], "memory://plant/run", **HOW)
    scale.gather("memory://plant/run")
    assert by_name(Place.of("memory://plant/run").read(LINES)) == wanted
