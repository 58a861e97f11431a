"""What a user meets before any picture: light imports, the public names, the data files."""

import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vlad
from vlad.files import cache_dir, resource

ROOT = Path(__file__).resolve().parents[1]


def test_import_vlad_needs_neither_torch_nor_transformers():
    code = "import sys, vlad; vlad.methods(); print({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there():
    for name in vlad.__all__:
        assert getattr(vlad, name) is not None
    assert set(vlad.__all__) <= set(dir(vlad))
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has"):
        vlad.laod  # noqa: B018


def test_methods_stays_callable_after_its_folder_is_imported():
    import vlad.methods.winclip

    assert vlad.methods() == sorted(vlad.methods.METHODS)
    assert "winclip" in vlad.methods()
    assert vlad.methods.winclip.WinClip is not None


@pytest.mark.parametrize("name", ["datasets", "encoders", "evaluate", "explain", "methods"])
def test_a_module_that_is_a_call_shows_the_signature_and_words_of_its_function_and_travels_by_name(name):
    module = getattr(vlad, name)
    function = getattr(module, name)
    assert inspect.signature(module) == inspect.signature(function)
    assert inspect.getdoc(function).splitlines()[0] in inspect.getdoc(module)
    assert pickle.loads(pickle.dumps(module)) is module


def test_type_checkers_see_what_calls_of_the_package_take_and_give(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "use.py").write_text(
        "import vlad\n"
        "reveal_type(vlad.evaluate)\nreveal_type(vlad.datasets)\nreveal_type(vlad.methods())\n"
        "vlad.evaluate([], [], shot=1)\n"
    )
    said = api.run([str(tmp_path / "use.py"), "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"])[0]
    assert "shots: int =" in said and "-> vlad.report" in said
    assert 'revealed type is "def () -> list[str]"' in said.replace("builtins.", "").replace("Revealed", "revealed")
    assert 'Unexpected keyword argument "shot"' in said


def test_the_cache_moves_with_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert cache_dir().is_dir()


def test_a_missing_data_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"prompts/absent\.toml"):
        resource("prompts/absent.toml")


def test_the_wheel_takes_the_data_folders_along():
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(included["force-include"]) == {"prompts", "adapters", "eval"}
    for folder in included["force-include"]:
        assert not list((ROOT / folder).rglob("*.py")), f"{folder} holds data, no code"


def test_data_folders_explain_themselves():
    assert all((ROOT / folder / "README.md").is_file() for folder in ("prompts", "adapters", "eval"))
