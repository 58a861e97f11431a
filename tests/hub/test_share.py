"""A detector goes to a hub on the loopback address and comes back, without what its owner did not mean to show."""

import numpy as np
import pytest
from hub_stub import HubStub
from huggingface_hub import constants
from safetensors import safe_open

import vlad
from vlad.hub import share

REPO = "me/bolt-detector"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """An empty hub that this process asks."""
    server = HubStub({})
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fitted(tiny_encoder, tmp_path):
    """A detector of five good pictures in a folder whose name nobody should read."""
    from PIL import Image

    (tmp_path / "anna").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(90, 110, (60, 60, 3), dtype=np.uint8)).save(tmp_path / "anna" / f"{number}.png")
    detector = vlad.load("patch_text", "metal bolt", encoder=tiny_encoder)
    detector.fit(sorted((tmp_path / "anna").iterdir()))
    return detector


def test_a_shared_detector_scores_as_its_owners_does(stub, fitted, tiny_encoder):
    assert fitted.push_to_hub(REPO) == f"{stub.address}/{REPO}"
    again = vlad.load(f"hf-hub:{REPO}", encoder=tiny_encoder)
    picture = np.random.default_rng(9).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    assert again.predict(picture).score == fitted.predict(picture).score
    assert again.threshold == fitted.threshold and again.name == "metal bolt"


def test_it_is_private_unless_its_owner_says_otherwise(stub, fitted):
    fitted.push_to_hub(REPO)
    assert stub.created.get("private") or stub.created["visibility"] == "private"
    fitted.push_to_hub("me/open", private=False)
    assert not stub.created.get("private") and stub.created.get("visibility") != "private"


def test_no_path_of_a_picture_leaves_the_machine(stub, fitted, tmp_path):
    fitted.push_to_hub(REPO)
    assert sorted(stub.files[REPO]) == ["README.md", "detector.safetensors"]
    assert all(b"anna" not in content for content in stub.files[REPO].values())
    (tmp_path / "shared.safetensors").write_bytes(stub.files[REPO]["detector.safetensors"])
    with safe_open(tmp_path / "shared.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if file.get_tensor(key).dtype.is_signed is False], "pixels"  # noqa: SIM118


def test_the_card_says_method_encoder_threshold_and_promise(fitted):
    said = share.card(fitted, REPO)
    assert "# metal bolt: an anomaly detector of VLAD" in said
    for fact in ("`patch_text`", "`tiny`", "learnt from | 5 good", f"{fitted.threshold:.6g}", fitted.calibration.note):
        assert fact in said
    assert f'vlad.load("hf-hub:{REPO}")' in said


def test_a_name_cannot_write_into_its_card(fitted):
    fitted.describe("<b>a</b>")
    assert "# ba/b: an anomaly detector" in share.card(fitted, REPO)


@pytest.mark.parametrize("repo", ["bolt", "/bolt", "a/b/c", ""])
def test_a_repository_needs_an_owner_and_a_name(fitted, repo):
    with pytest.raises(ValueError, match="expected '<owner>/<name>'"):
        fitted.push_to_hub(repo)


def test_a_hub_that_refuses_is_met_with_a_sentence(stub, fitted):
    stub.refuse = (401, {})
    with pytest.raises(vlad.WeightsError, match="set HF_TOKEN"):
        fitted.push_to_hub(REPO)
    with pytest.raises(vlad.WeightsError, match=r"detector\.safetensors of me/nothing is not on this machine"):
        vlad.load("hf-hub:me/nothing")
