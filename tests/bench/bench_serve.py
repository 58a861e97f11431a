"""Throughput and waiting of `vlad serve` against `stream` in one process; by hand: python tests/bench/bench_serve.py

--broken N   N requests, one in twenty with a broken picture: codes, and memory on the way
--refit      a fit every second under load: which versions answer with which score
"""

import argparse
import http.client
import io
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vlad
from vlad.serve.shelf import Shelf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serve_pictures import drawn
from serve_process import serving

MARK = b"vlad-bench"
HEAD = b'--%b\r\nContent-Disposition: form-data; name="%b"'


def photo(seed: int) -> bytes:
    """JPEG bytes of a part of 640 x 480 px."""
    draw, kept = np.random.default_rng(seed), io.BytesIO()
    small = draw.integers(60, 200, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(kept, "JPEG", quality=90)
    return kept.getvalue()


def form(*pictures: bytes) -> bytes:
    field = HEAD % (MARK, b"detector") + b"\r\n\r\npart\r\n"
    files = [HEAD % (MARK, b"files") + b'; filename="a.jpg"\r\n\r\n' + one + b"\r\n" for one in pictures]
    return field + b"".join(files) + b"--" + MARK + b"--\r\n"


class Client:
    """One connection that is kept."""

    def __init__(self, address: str):
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        kind = {"Content-Type": f"multipart/form-data; boundary={MARK.decode()}"}
        self.connection.request("POST", path, body, kind)
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def loaded(address: str, clients: int, bodies: list[bytes]) -> tuple[float, list[float], Counter]:
    """(requests a second, seconds of each, codes), of clients that each ask as soon as they are answered."""
    todo, took, codes, lock = iter(bodies), [], Counter(), threading.Lock()

    def work() -> None:
        client = Client(address)
        while True:
            with lock:
                body = next(todo, None)
            if body is None:
                return
            start = time.perf_counter()
            code, _ = client.post("/v1/score", body)
            took.append(time.perf_counter() - start)
            codes[code] += 1

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(work) for _ in range(clients)]:
            one.result()
    return len(bodies) / (time.perf_counter() - start), took, codes


def streamed(detector: vlad.Detector, pictures: list[bytes]) -> float:
    start = time.perf_counter()
    for _ in detector.stream(pictures, batch_size=8):
        pass
    return len(pictures) / (time.perf_counter() - start)


def throughput(address: str, detector: vlad.Detector, requests: int) -> None:
    pictures = [photo(seed) for seed in range(32)] * (requests // 32)
    bodies = [form(one) for one in pictures]
    loaded(address, 8, bodies[:32])
    streamed(detector, pictures[:32])
    shares = []
    for turn in range(3):  # interleaved, as the machine is shared
        rates = {"stream": streamed(detector, pictures)}
        for clients in (1, 8, 32):
            rates[clients], took, codes = loaded(address, clients, bodies)
            middle = statistics.median(took)
            p95 = sorted(took)[int(0.95 * len(took))]
            print(
                f"turn {turn}, {clients:2} clients: {rates[clients]:5.1f} a second, median {1000 * middle:5.0f} ms, "
                f"p95 {1000 * p95:5.0f} ms ({p95 / middle:.2f} x), codes {dict(codes)}"
            )
        shares.append(rates[32] / rates["stream"])
        print(f"turn {turn}, stream: {rates['stream']:5.1f} a second; 32 clients {shares[-1]:.2f} x of it")
    print(f"32 clients / stream: best {max(shares):.2f}, middle {statistics.median(shares):.2f}")


def broken(address: str, process: int, requests: int) -> None:
    wrong = [b"", b"GIF89a", photo(0)[:500], b"\x89PNG\r\n\x1a\n" + b"\0" * 100]
    bodies = [form(wrong[n // 20 % 4] if n % 20 == 0 else photo(n % 64)) for n in range(requests)]
    codes: Counter = Counter()
    for part in range(5):
        some = bodies[part * requests // 5 : (part + 1) * requests // 5]
        codes += loaded(address, 16, some)[2]
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        print(f"{sum(codes.values()):5} requests: {pages * 4096 / 2**20:.0f} MB, codes {dict(codes)}", flush=True)


def refit(address: str, seconds: float = 20) -> None:
    import json

    stop, answers = threading.Event(), Counter()
    body, normals = form(photo(7)), [form(*(drawn(10 * turn + n) for n in range(5))) for turn in range(int(seconds))]

    def work() -> None:
        client = Client(address)
        while not stop.is_set():
            said = json.loads(client.post("/v1/score", body)[1])
            answers[said["version"], said["results"][0]["score"], said["results"][0]["threshold"]] += 1

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(work)
        client, end = Client(address), time.monotonic() + seconds
        for one in normals:
            if time.monotonic() > end:
                break
            assert client.post("/v1/detectors/part/fit", one)[0] == 200
            time.sleep(1)
        stop.set()
    versions = Counter(version for version, *_ in answers)
    torn = sum(count > 1 for count in versions.values())
    print(f"{sum(answers.values())} answers of {len(versions)} versions; with more than one (score, threshold): {torn}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch, here and there")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--broken", type=int, default=0)
    parser.add_argument("--refit", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = vlad.load(name="part").fit([photo(seed) for seed in range(100, 108)])
    with tempfile.TemporaryDirectory() as folder:
        Shelf(Path(folder), detector.encoder).put("part", detector)
        with serving(folder, OMP_NUM_THREADS=str(arguments.threads)) as (address, process):
            if arguments.broken:
                broken(address, process.pid, arguments.broken)
            elif arguments.refit:
                refit(address)
            else:
                throughput(address, detector, arguments.requests)


if __name__ == "__main__":
    main()
