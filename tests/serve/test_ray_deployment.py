"""The application as replicas on a local cluster."""

import json
import socket
import time

import pytest
from serve_pictures import drawn
from test_serve_killed import asked, form

from vlad.serve.shelf import Shelf

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path, tiny_encoder, fitted):
    """(address, the shelf of its folder)."""
    ray = pytest.importorskip("ray", reason="needs ray[serve]")
    pytest.importorskip("grpc", reason="needs ray[serve]")
    from ray import serve

    from vlad.serve.ray import deployment

    shelf = Shelf(tmp_path / "detectors", tiny_encoder)
    shelf.put("grain", fitted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        placed = {"device": "cpu", "dtype": "float32"}
        serve.run(deployment(shelf.folder, replicas=2, **placed), name="vlad", route_prefix="/")
        yield f"http://127.0.0.1:{port}", shelf
    finally:
        serve.shutdown()
        ray.shutdown()


def test_replicas_score_as_the_library_take_new_versions_up_and_change_nothing(cluster, fitted):
    address, shelf = cluster
    body, kind = form([drawn(9), b"broken"], detector="grain")

    def scored():
        code, said = asked(f"{address}/v1/score", body, kind)
        assert code == 200
        return json.loads(said)

    answer = scored()
    assert answer["results"][0]["score"] == pytest.approx(fitted.predict(drawn(9)).score, abs=1e-6)
    assert answer["results"][1]["error"]
    assert asked(f"{address}/v1/detectors/grain", method="DELETE")[0] == 403
    shelf.change("grain", lambda detector: setattr(detector, "threshold", 0.9))
    end = time.monotonic() + 30
    while {scored()["version"] for _ in range(8)} != {2}:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert scored()["results"][0]["threshold"] == 0.9
    assert asked(f"{address}/")[0] == asked(f"{address}/openapi.json")[0] == 200
