"""An application with one fitted detector, asked in this process."""

import pytest
from serve_pictures import drawn

import vlad


@pytest.fixture(scope="session")
def fitted(tiny_encoder):
    """A detector that knows six grains."""
    return vlad.load(name="grain", encoder=tiny_encoder).fit([drawn(seed) for seed in range(6)])


@pytest.fixture
def shelf(tmp_path, tiny_encoder, fitted):
    from vlad.serve.shelf import Shelf

    made = Shelf(tmp_path / "detectors", tiny_encoder)
    made.put("grain", fitted)
    return made


@pytest.fixture
def client(shelf):
    """A function: a client of an application with these settings."""
    from starlette.testclient import TestClient

    from vlad.serve import Settings, make_app

    opened = []

    def made(**settings):
        one = TestClient(make_app(shelf, Settings(**settings)), "http://localhost", raise_server_exceptions=False)
        opened.append(one)
        return one.__enter__()

    yield made
    for one in opened:
        one.__exit__(None, None, None)
