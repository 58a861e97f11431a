"""`vlad serve` as a process: how it begins, how it ends, and what is left when it is killed."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from serve_pictures import drawn
from serve_process import serving

from vlad.serve.shelf import FILE, Shelf

KEY = "a-long-random-text"


def form(files, **fields):
    """(body, content type) of a form as browsers send it."""
    mark, body = uuid4().hex, io.BytesIO()
    for name, value in fields.items():
        body.write(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for number, content in enumerate(files):
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n'
        body.write(head.encode() + content + b"\r\n")
    body.write(f"--{mark}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={mark}"


def asked(address, body=None, kind="application/json", method=None, **headers):
    """(code, what it says)."""
    request = Request(address, body, {"content-type": kind, **headers}, method=method)
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def readiness(address):
    """The code of /readyz; None where nothing listens."""
    try:
        return asked(f"{address}/readyz")[0]
    except OSError:
        return None


def test_it_is_not_ready_before_its_detectors_are_there(tmp_path, fitted, tiny_encoder):
    Shelf(tmp_path, tiny_encoder).put("grain", fitted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vlad.cli", "serve", "--port", port, "--detectors", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            address, seen, end = f"http://127.0.0.1:{port}", [], time.monotonic() + 60
            while (code := readiness(address)) != 200 and time.monotonic() < end:
                seen.append(code)
                time.sleep(0.05)
            assert code == 200 and seen and set(seen) == {None}
            assert b'"grain"' in asked(f"{address}/v1/detectors")[1]
        finally:
            process.send_signal(signal.SIGTERM)


def test_with_a_key_from_a_file_it_serves_all_and_answers_what_is_in_flight_before_it_ends(
    tmp_path, fitted, tiny_encoder
):
    Shelf(tmp_path, tiny_encoder).put("grain", fitted)
    (tmp_path / "key").write_text(f"{KEY}\n")
    said = {"authorization": f"Bearer {KEY}"}
    with serving(tmp_path, "--host", "0.0.0.0", "--key-file", str(tmp_path / "key")) as (address, process):
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert asked(f"{address}/v1/detectors")[0] == 401
        body, kind = form([drawn(9)] * 2, detector="grain")
        codes, begun = [], threading.Semaphore(0)

        def ask():
            begun.release()
            codes.append(asked(f"{address}/v1/score", body, kind, **said)[0])

        with ThreadPoolExecutor(20) as pool:
            for _ in range(20):
                pool.submit(ask)
            for _ in range(20):
                begun.acquire()
            while b"vlad_queue_pictures 40.0" not in asked(f"{address}/metrics", **said)[1] and len(codes) < 5:
                pass
            process.send_signal(signal.SIGTERM)
            seen = [200]
            while seen[-1] is not None:
                seen.append(readiness(address))
        assert codes == [200] * 20
        assert sorted(seen, key=[200, 503, None].index) == seen, "once it ends it is never ready again"
        assert process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            urlopen(f"{address}/healthz", timeout=5)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["fit", "upload"])
def test_killed_at_any_moment_it_leaves_the_old_detector_or_the_new_one_whole(tmp_path, fitted, tiny_encoder, work):
    elsewhere, tmp_path = tmp_path / "tmp", tmp_path / "detectors"
    elsewhere.mkdir()
    shelf = Shelf(tmp_path, tiny_encoder)
    shelf.put("grain", fitted)
    content = shelf.get("grain").path.read_bytes()
    with serving(tmp_path, TMPDIR=str(elsewhere)) as (address, process):
        if work == "fit":
            body, kind = form([drawn(seed) for seed in range(200, 206)])
            ask = (f"{address}/v1/detectors/grain/fit", body, kind)
        else:
            ask = (f"{address}/v1/detectors/grain", content, "application/octet-stream", "PUT")
        started = time.monotonic()
        assert asked(*ask)[0] == 200, "whole, and how long it takes"
        took = time.monotonic() - started

        def again():
            with pytest.raises(OSError):
                while True:
                    asked(*ask)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(again)
            time.sleep(0.6 * took + 0.02)
            process.kill()
    left = [path.name for path in tmp_path.iterdir()]
    held = Shelf(tmp_path, tiny_encoder).get("grain")
    assert held.version == max(int(found[2]) for name in left if (found := FILE.fullmatch(name)))
    assert held.detector.predict(drawn(9)).score >= 0
    assert list(elsewhere.iterdir()) == [], "nothing of a client's lies where no start looks"
    again = Shelf(tmp_path, tiny_encoder)
    again.put("grain", fitted)
    assert all(FILE.fullmatch(path.name) for path in tmp_path.iterdir()), "the next writer clears up"


def test_other_machines_are_not_served_without_a_key(tmp_path):
    command = [sys.executable, "-m", "vlad.cli", "serve", "--host", "0.0.0.0", "--detectors", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "VLAD_SERVE_KEY": ""})
    assert refused.returncode == 2 and "VLAD_SERVE_KEY" in refused.stderr and "Traceback" not in refused.stderr
