"""Prompt packs, names, and the cached embeddings of sentences."""

import dataclasses
import importlib.util
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vlad import forms, prompts
from vlad.files import resource
from vlad.prompts import PromptPack
from vlad.prompts.wording import NamesFile

GOLDEN = Path(__file__).parents[1] / "golden"
PACK = """
title = "metal parts"
templates = ["a photo of a {}.", "a close-up photo of the {}."]
normal = ["flawless {}", "{} without defect"]
anomalous = ["damaged {}", "{} with a scratch"]

[defects]
scratch = ["{} with a scratch", "scratched {}"]
rust = "rusty {}"

[severity]
scratch = "minor"
"""


class CountingEncoder:
    """Stands in for an Encoder: rows that depend on the sentence alone, and a list of what was really encoded."""

    embed_dim, device, dtype = 8, torch.device("cpu"), torch.float32

    def __init__(self, digest="abc"):
        self.digest, self.encoded = digest, []

    def text(self, sentences):
        self.encoded += sentences
        return torch.stack([torch.arange(1.0, 9).mul(sum(map(ord, sentence))).sin() for sentence in sentences])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own for every test."""
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    prompts._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "metal.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def golden_encoder():
    open_clip = pytest.importorskip("open_clip")
    from vlad.encoders.clip import ClipEncoder
    from vlad.encoders.weights import LoadedModel

    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    model = weights.fill_(open_clip.model.CLIP(**weights.TINY_CLIP), seed=0).eval()
    loaded = LoadedModel(model, open_clip.get_tokenizer("ViT-B-32"), (0.5,) * 3, (0.5,) * 3, "golden-seed-0")
    return ClipEncoder(loaded, "golden", dtype="float32")


# The shipped packs


@pytest.mark.parametrize(
    ("name", "key"), [("winclip-anomalib", "text_prototypes"), ("winclip", "text_prototypes_full22_mean")]
)
def test_prototypes_are_those_of_the_reference(golden_encoder, name, key):
    golden = np.load(GOLDEN / "winclip.npz")
    pack = PromptPack.load(name)
    for _ in range(2):  # computed, then read from the cache
        ours = prompts.prototypes(golden_encoder, pack, str(golden["class_name"]))
        # Another order of the same sums in float32: 2.5e-6 was seen between two implementations.
        np.testing.assert_allclose(ours.numpy(), golden[key], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("pack", "normal", "anomalous"),
    [
        ("april_gan", 245, 175),
        ("clip_ad", 198, 220),
        ("anovl", 462, 462),
        ("anovl-texture", 462, 462),
        ("clip_surgery", 7, 4),
    ],
)
def test_the_packs_of_the_papers_have_their_numbers_of_different_sentences(pack, normal, anomalous):
    states = PromptPack.load(pack).sentences("screw")
    assert [len(state) for state in states] == [normal, anomalous]
    assert len({*states[0], *states[1]}) == normal + anomalous


def test_industrial_photos_have_their_article():
    objects, textures = (PromptPack.load(pack).sentences("nut")[0] for pack in ("anovl", "anovl-texture"))
    assert "an industrial photo of a small normal nut" in objects
    assert "a manufacturing image of the large perfect nut" in objects
    assert "a surface picture of the normal nut for visual inspection" in textures
    assert "a cropped industrial image of a nut without flaw" in objects


def test_winclip_has_154_normal_and_88_anomalous_sentences():
    normal, anomalous = PromptPack.load("winclip").sentences("screw")
    assert (len(normal), len(anomalous)) == (154, 88)
    assert len(set(normal + anomalous)) == 242


def test_winclip_anomalib_differs_from_winclip_in_one_template_only():
    ours, theirs = PromptPack.load("winclip"), PromptPack.load("winclip-anomalib")
    assert len(theirs.templates) == 21
    assert set(ours.templates) - set(theirs.templates) == {
        "a cropped photo of a {}.",
        "a jpeg corrupted photo of a {}.",
    }
    assert theirs.templates.count("a jpeg corrupted photo of the {}.") == 2
    assert (ours.normal, ours.anomalous) == (theirs.normal, theirs.anomalous)


@pytest.mark.parametrize("name", prompts.shipped())
def test_every_shipped_pack_loads_and_carries_its_name(name):
    assert PromptPack.load(name).name == name


# Filling


def test_sentences_are_every_phrase_in_every_template(write):
    normal, anomalous = PromptPack.load(write(PACK)).sentences("metal bolt")
    assert normal == [
        "a photo of a flawless metal bolt.",
        "a close-up photo of the flawless metal bolt.",
        "a photo of a metal bolt without defect.",
        "a close-up photo of the metal bolt without defect.",
    ]
    assert len(anomalous) == 4


def test_a_dict_without_templates_uses_its_phrases_as_they_stand():
    pack = PromptPack.load({"normal": ["clean {}"], "anomalous": ["dirty {}"]})
    assert pack.sentences("lens") == (["clean lens"], ["dirty lens"])
    assert pack.name == "custom"


@pytest.mark.parametrize("name", ["100% nut", "bolt %s", "größe 5", "\\1 bolt"])
def test_a_name_enters_the_prompts_exactly_as_given(name):
    assert PromptPack.load("winclip").phrases(name)[0][0] == name


@pytest.mark.parametrize("name", ["", "  ", "a {} b", "bolt}", "two\nlines", "end\r"])
def test_a_name_that_cannot_be_put_into_prompts_is_refused(name):
    with pytest.raises(ValueError, match="name: expected words"):
        PromptPack.load("winclip").phrases(name)


def test_a_name_that_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="metal bolt"):
        PromptPack.load("winclip").phrases(None)


# Reading and checking


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("normal =", "normall =", r"normall: unknown key; known: title, .*did you mean 'normal'"),
        ("anomalous =", "abnormal =", r"abnormal: unknown key; .*did you mean 'anomalous'"),
        ('anomalous = ["damaged {}", "{} with a scratch"]', "", r"anomalous: this key is missing"),
        ('title = "metal parts"', "title = 3", r"title: expected text, got 3"),
        ('"a photo of a {}."', '"a photo."', r"templates, entry 1: 'a photo.' lacks \{\}"),
        ('"flawless {}"', '"flawless"', r"normal, entry 1: 'flawless' lacks \{\}"),
        ('"damaged {}"', '"damaged {name}"', r"anomalous, entry 1: 'damaged \{name\}' has a brace"),
        ('"damaged {}"', '"damaged {0} {}"', r"anomalous, entry 1: .* has a brace"),
        ('"damaged {}"', '"damaged {}}"', r"anomalous, entry 1: .* has a brace"),
        ('"damaged {}"', '"damaged { }"', r"anomalous, entry 1: .* has a brace"),
        ('"damaged {}"', '"damaged {{}}"', r"anomalous, entry 1: .* has a brace"),
        ('"damaged {}"', '" "', r"anomalous, entry 1: the text is empty"),
        ('"damaged {}"', "7", r"anomalous, entry 1: expected text, got 7"),
        ('"damaged {}"', '"{} with a  Scratch"', r"anomalous: entry 2, .* repeats entry 1"),
        ('"damaged {}"', '"Flawless {}"', r"anomalous: 'flawless \{\}' is also in normal"),
        ('["flawless {}", "{} without defect"]', "[]", r"normal: the list is empty"),
        ('["flawless {}", "{} without defect"]', '"flawless {}"', r"normal: expected a list of texts"),
        ('"rusty {}"', "[]", r"defects.rust: the list is empty"),
        ('"rusty {}"', '"rusty"', r"defects.rust, entry 1: 'rusty' lacks \{\}"),
        ('"rusty {}"', "true", r"defects.rust: expected a list of texts"),
        ("rust =", '"" =', r"defects: expected a word as label, got ''"),
        ("rust =", "title =", r"defects.title: 'title' is a key of the pack; put it above"),
        (
            '= "minor"',
            '= "medium"',
            r"severity.scratch: unknown level 'medium'; known: cosmetic, minor, major, critical",
        ),
        ('= "minor"', '= "Major"', r"severity.scratch: .*did you mean 'major'"),
        ('= "minor"', "= 2", r"severity.scratch: expected text, got 2"),
        (
            'scratch = "minor"',
            'scratsch = "minor"',
            r"severity.scratsch: .*known: scratch, rust; did you mean 'scratch'",
        ),
        ("[defects]", "[defects", r"not valid TOML: .*line 7"),
        ("[severity]", "[defects]", r"not valid TOML: .*line 11"),
    ],
)
def test_a_mistake_in_a_pack_is_reported_with_file_and_key(write, old, new, expected):
    assert old in PACK
    path = write(PACK.replace(old, new, 1))
    with pytest.raises(ValueError, match=expected) as caught:
        PromptPack.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["defects", "severity"])
def test_a_table_given_as_a_text_is_reported(write, table):
    path = write(f'{table} = "x"\nnormal = ["{{}}"]\nanomalous = ["bad {{}}"]')
    with pytest.raises(ValueError, match=rf"metal\.toml: {table}: expected a table \[{table}\]"):
        PromptPack.load(path)


def test_a_mistake_in_a_dict_is_reported_as_one():
    with pytest.raises(ValueError, match="prompts given as a dict: normal, entry 1: 'good' lacks"):
        PromptPack.load({"normal": ["good"], "anomalous": ["bad {}"]})


def test_a_pack_built_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="anomalous: the list is empty"):
        PromptPack("mine", ("{}",), ("good {}",), ())


def test_a_file_that_is_not_utf8_is_reported(tmp_path):
    path = tmp_path / "metal.toml"
    path.write_bytes(PACK.replace("flawless", "größ").encode("latin-1"))
    with pytest.raises(ValueError, match=r"metal\.toml: not UTF-8"):
        PromptPack.load(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "metal.toml"
    path.write_bytes(b"\xef\xbb\xbf" + PACK.replace("\n", "\r\n").encode())
    assert PromptPack.load(path).title == "metal parts"


def test_an_unknown_shipped_pack_lists_the_known_ones_and_the_closest():
    with pytest.raises(
        ValueError, match=r"'winclp'; known: aaclip, adaclip, .*winclip, winclip-anomalib.*mean 'winclip'"
    ):
        PromptPack.load("winclp")


@pytest.mark.parametrize("source", ["nowhere.toml", "folder/winclip", Path("winclip")])
def test_a_missing_file_is_not_found(source):
    with pytest.raises(
        FileNotFoundError, match=r"no such file; give a \.toml file or a shipped pack; known: aaclip, adaclip"
    ):
        PromptPack.load(source)


def test_prompts_of_another_kind_are_a_type_error():
    with pytest.raises(TypeError, match="type list; give a pack's name"):
        PromptPack.load(["good {}"])


# Packs as values


def test_load_returns_a_pack_as_it_is():
    pack = PromptPack.load("winclip")
    assert PromptPack.load(pack) is pack


def test_a_pack_cannot_be_changed_and_can_be_hashed_and_pickled(write):
    pack = PromptPack.load(write(PACK))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pack.title = "other"
    assert hash(pack) == hash(PromptPack.load(pack.to_dict()))
    assert pickle.loads(pickle.dumps(pack)) == pack


@pytest.mark.parametrize(
    "text",
    [
        *map(chr, range(1, 32)),
        "\x7f",
        "\x85",
        "\u2028",
        '"',
        "'",
        '"""',
        "\\",
        "\\u0041",
        "#",
        "=",
        "[x]",
        "a.b",
        "größe 螺丝 🔩",
    ],
    ids=ascii,
)
def test_a_saved_pack_reads_back_equal(tmp_path, text):
    label = f"label {text}"
    raw = {"normal": [f"{text}{{}}", "{} x"], "anomalous": [f"y {text} {{}}{text}"], "templates": [f"{{}}{text}"] * 2}
    pack = PromptPack.load(
        {"title": text, **raw, "defects": {label: f"{{}} {text}", "z": ["{}"]}, "severity": {label: "major"}}
    )
    pack.save(tmp_path / "new" / "pack.toml")
    assert PromptPack.load(tmp_path / "new" / "pack.toml") == pack
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["pack.toml"]


@pytest.mark.parametrize("name", prompts.shipped())
def test_a_shipped_pack_survives_saving(tmp_path, name):
    pack = PromptPack.load(name)
    pack.save(tmp_path / "copy.toml")
    assert PromptPack.load(str(tmp_path / "copy.toml")) == pack
    assert PromptPack.load(pack.to_dict()) == pack


def test_a_pack_is_not_saved_under_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"pack\.yaml: a prompt pack is a \.toml file"):
        PromptPack.load("winclip").save(tmp_path / "pack.yaml")


# Embeddings and their cache


def test_embed_encodes_each_sentence_once_and_keeps_the_order():
    encoder = CountingEncoder()
    rows = prompts.embed(encoder, ["b", "a", "b"])
    assert encoder.encoded == ["b", "a"]
    assert torch.equal(rows, CountingEncoder().text(["b", "a", "b"]))


def test_a_second_encoder_with_the_same_digest_reads_the_cache(cache):
    first = prompts.embed(CountingEncoder(), ["a", "b"])
    second = CountingEncoder()
    assert torch.equal(prompts.embed(second, ["a", "b"]), first)
    assert second.encoded == []
    assert len(list((cache / "text").iterdir())) == 1


@pytest.mark.parametrize("change", ["digest", "sentences"])
def test_other_weights_or_sentences_are_not_answered_from_the_cache(change):
    prompts.embed(CountingEncoder(), ["a", "b"])
    other = CountingEncoder("other" if change == "digest" else "abc")
    prompts.embed(other, ["b", "a"] if change == "sentences" else ["a", "b"])
    assert sorted(other.encoded) == ["a", "b"]


def test_prototypes_and_phrases_share_one_cache_file(cache):
    pack = PromptPack.load("winclip")
    prompts.prototypes(CountingEncoder(), pack, "screw")
    encoder = CountingEncoder()
    prompts.phrase_prototypes(encoder, pack, "screw")
    assert encoder.encoded == []
    assert len(list((cache / "text").iterdir())) == 1


def test_the_environment_variable_moves_the_cache(cache, tmp_path, monkeypatch):
    prompts.embed(CountingEncoder(), ["a"])
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "elsewhere"))
    encoder = CountingEncoder()
    prompts.embed(encoder, ["a"])
    assert encoder.encoded == ["a"]
    assert len(list((tmp_path / "elsewhere" / "text").glob("*.safetensors"))) == 1


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):  # the last byte belongs to the numbers: the file still parses
    return content[:-1] + bytes([content[-1] ^ 1])


def zeroed(content):
    return bytes(len(content))


def retyped(key, dtype):
    """With that tensor of another type, of which the numbers fit."""

    def changed(content):
        from safetensors.torch import load, save

        kept = load(content)
        return save({**kept, key: kept[key].to(dtype)})

    return changed


OF_OTHER_TYPES = [
    retyped("rows", torch.bfloat16),
    retyped("rows", torch.float64),
    retyped("sha256", torch.float32),
    retyped("sha256", torch.int8),
]


@pytest.mark.parametrize(
    "damage",
    [truncated, flipped, zeroed, lambda content: b"", lambda content: b"{}" * 500, *OF_OTHER_TYPES],
)
def test_a_damaged_cache_file_is_computed_again_and_mended(cache, damage):
    rows = prompts.embed(CountingEncoder(), ["a", "b"])
    (file,) = (cache / "text").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    encoder = CountingEncoder()
    assert torch.equal(prompts.embed(encoder, ["a", "b"]), rows)
    assert encoder.encoded == ["a", "b"]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("blocked", ["cache", "cache/text"])
def test_a_cache_that_cannot_be_written_costs_one_warning_only(tmp_path, caplog, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert prompts.embed(CountingEncoder(), ["a"]).shape == (1, 8)
    assert len(caplog.records) == 1
    assert str(tmp_path / "cache") in caplog.text


WRITER = """
import logging, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from test_prompts import CountingEncoder, prompts, torch

def write_slowly(path, content):  # so that the two meet in the middle of a file
    with path.open("wb") as file:
        for start in range(0, len(content), 1000):
            file.write(content[start : start + 1000])
            file.flush()
            time.sleep(0.001)

pathlib.Path.write_bytes = write_slowly
torch.set_num_threads(1)
logging.basicConfig(level=logging.INFO)
folder = prompts.cache_dir() / "text"
sets = [[f"{i} {j}" for j in range(200)] for i in range(3)]
print("ready", flush=True)
sys.stdin.readline()
for turn in range(12):
    for sentences in sets:
        assert torch.equal(prompts.embed(CountingEncoder(), sentences), CountingEncoder().text(sentences))
    for path in list(folder.glob("*.safetensors"))[turn % 2 :: 2]:
        path.unlink(missing_ok=True)  # so that both write again and again
for sentences in sets:
    prompts.embed(CountingEncoder(), sentences)
"""


def test_two_processes_writing_the_cache_at_once_do_not_disturb_each_other(cache):
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    writers = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # both start now
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        said = writer.communicate(timeout=60)[1]
        assert writer.returncode == 0, said
        assert "vlad.prompts" not in said  # the log tells of damaged files and of files that could not be kept
    files = [path.name for path in (cache / "text").iterdir()]
    assert len(files) == 3
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in files)


def test_prototypes_are_raw_means_over_the_sentences_of_a_state():
    pack, encoder = PromptPack.load("winclip-anomalib"), CountingEncoder()
    slow = [encoder.text(state).double().mean(0) for state in pack.sentences("screw")]
    # float32 sums of at most 147 terms below 1
    torch.testing.assert_close(
        prompts.prototypes(encoder, pack, "screw").double(), torch.stack(slow), atol=1e-6, rtol=0
    )


def test_a_phrase_is_the_unit_mean_over_its_templates(write):
    pack, encoder = PromptPack.load(write(PACK)), CountingEncoder()
    phrases, directions = prompts.phrase_prototypes(encoder, pack, "bolt")
    assert phrases == ["flawless bolt", "bolt without defect", "damaged bolt", "bolt with a scratch"]
    for phrase, direction in zip(phrases, directions, strict=True):
        mean = encoder.text([template.replace("{}", phrase) for template in pack.templates]).mean(0)
        torch.testing.assert_close(direction, mean / mean.norm())


def test_embeddings_carry_no_gradient(golden_encoder):
    assert not prompts.embed(golden_encoder, ["a bolt"]).requires_grad


# Names of categories

COUNTS = {
    "mvtec_ad": 15, "mvtec_ad_2": 8, "mvtec_loco": 5, "visa": 12, "btad": 3, "mpdd": 6,
    "dtd_synthetic": 12, "dagm": 10, "real_iad": 30, "bmad": 6,
}  # fmt: skip


@pytest.mark.parametrize(("dataset", "count"), COUNTS.items())
def test_a_benchmark_has_words_for_every_category(dataset, count):
    assert len(prompts.names(dataset)) == count


@pytest.mark.parametrize("dataset", prompts.named_datasets())
def test_every_word_of_every_table_can_be_put_into_prompts(dataset):
    for category, words in prompts.names(dataset).items():
        assert "_" not in prompts.check_name(words), category


@pytest.mark.parametrize(
    ("dataset", "category", "words"),
    [
        ("mvtec_ad", "metal_nut", "metal nut"),
        ("visa", "pcb3", "printed circuit board"),
        ("visa", "macaroni1", "macaroni"),
        ("mtd", "magnetic_tile", "magnetic tile"),
        ("elpv", "solar_cell_mono", "solar cell"),
        ("crackforest", "road", "asphalt road"),
        ("mvtec_ad", "new_part", "new part"),
        ("unknown", "gear_wheel", "gear wheel"),
        (None, "gear_wheel", "gear wheel"),
    ],
)
def test_a_category_is_called_by_its_words_else_by_its_folder(dataset, category, words):
    assert prompts.category_name(dataset, category) == words


def test_an_unknown_data_set_lists_the_known_ones_and_the_closest():
    with pytest.raises(ValueError, match=r"data set 'mvtec'; known: aws_lookout, .*did you mean 'mvtec_"):
        prompts.names("mvtec")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("[name]\nbolt = 'bolt'", "name: unknown key; known: names, title; did you mean 'names'"),
        ("title = 'x'", "names: this key is missing"),
        ("[names]", "names: expected at least one line"),
        ("names = 3", r"names: expected a table \[names\]"),
        ("[names]\nbolt = ''", "names.bolt: expected words"),
        ("[names]\nbolt = 5", "names.bolt: expected words"),
        ("[names]\nbolt = 'a {}'", "names.bolt: expected words"),
        ("[names", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_table_of_names_is_reported_with_file_and_key(tmp_path, table, expected):
    (tmp_path / "mine.toml").write_text(table)
    with pytest.raises(ValueError, match=expected) as caught:
        forms.read(NamesFile, tmp_path / "mine.toml")
    assert "mine.toml: " in str(caught.value)


def test_the_folder_of_packs_holds_no_code():
    assert not list(resource("prompts").rglob("*.py"))


def test_packs_and_names_are_read_without_torch():
    code = (
        "import sys; from vlad import prompts; prompts.PromptPack.load('winclip'); prompts.names('visa');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
