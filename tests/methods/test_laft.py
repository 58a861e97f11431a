"""LAFT against the official code's numbers (laft_* of tests/golden/patchcore.npz)."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from vlad.detector import Detector
from vlad.memory.nearest import nearest
from vlad.methods.laft import CONCEPTS, Laft, concept_basis, difference_rows, guided, ignored, phrase_groups

ATOL = 5e-6  # the golden names 1.3e-6 for an independent implementation


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "patchcore.npz")


@pytest.fixture(scope="module")
def drawn(golden_weights):
    """(sentences [12, 64], normals [40, 64], queries [15, 64]) by the golden's recipe."""
    draw = golden_weights.tensor
    text = draw("pc.laft.text.base", (1, 64))[0] + 0.5 * draw("pc.laft.text", (12, 64))
    return text, draw("pc.laft.train", (40, 64)), draw("pc.laft.test", (15, 64))


@pytest.fixture(scope="module")
def pictures(golden_weights):
    return [golden_weights.image(seed) for seed in range(8)]


def laft(encoder, **options):
    return Detector(Laft(encoder, **options)).describe("metal bolt")


def test_the_rows_stand_for_all_pairs_of_the_official_code(golden, drawn):
    text = drawn[0]
    for key, groups in (("laft_pairs", [text]), ("laft_pairs2", [text[:5], text[5:]])):
        pairs, rows = torch.from_numpy(golden[key]), difference_rows(groups)
        ours, theirs = rows.T @ rows, pairs.T @ pairs
        torch.testing.assert_close(ours * (theirs.trace() / ours.trace()), theirs, atol=2e-4, rtol=1e-4)


def test_the_rows_of_three_groups_stand_for_all_pairs_between_them(drawn):
    groups = [drawn[0][:3], drawn[0][3:8], drawn[0][8:]]
    pairs = [a - b for j in range(3) for i in range(j) for a in groups[i] for b in groups[j]]
    pairs = torch.stack(pairs)
    rows = difference_rows(groups)
    torch.testing.assert_close(rows.T @ rows, pairs.T @ pairs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("d", [4, 8])
def test_projections_and_scores_match_the_official_code(golden, drawn, d):
    text, normals, queries = drawn
    basis = concept_basis([text[:5], text[5:]], d)
    np.testing.assert_allclose(guided(queries, basis) @ basis, golden[f"laft_inner{d}"], atol=ATOL)
    np.testing.assert_allclose(ignored(queries, basis), golden[f"laft_orth{d}"], atol=ATOL)
    for key, part in (("inner", guided), ("orth", ignored)):
        scores = nearest(part(queries, basis), part(normals, basis), 5)[0].mean(1)
        np.testing.assert_allclose(scores, golden[f"laft_knn_{key}{d}"], atol=ATOL)


def test_by_default_the_basis_is_the_smallest_with_nine_tenths_of_the_energy(drawn):
    values = torch.linalg.svdvals(difference_rows([drawn[0]])).square()
    size = len(concept_basis([drawn[0]]))
    assert values[:size].sum() >= 0.9 * values.sum() > values[: size - 1].sum()
    assert len(concept_basis([drawn[0]], fewest=11)) == 11 > size
    assert len(concept_basis([drawn[0]], fewest=30)) == 11, "twelve sentences span eleven dimensions"
    assert len(concept_basis([torch.randn(300, 200, generator=torch.Generator().manual_seed(0))])) == 64


def test_two_sentences_span_their_difference(drawn):
    one, other = drawn[0][:2]
    basis = concept_basis([torch.stack([one, other])])
    assert basis.shape == (1, 64)
    assert torch.nn.functional.cosine_similarity(basis[0], one - other, dim=0).abs() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(ignored(one, basis), ignored(other, basis))
    with pytest.raises(ValueError, match="mean the same"):
        concept_basis([one.expand(3, -1)])


def test_what_is_ignored_no_longer_separates_pictures(small_encoder, pictures):
    """A shift of the embedding along the words for lighting is a defect to plain neighbours and none to LAFT."""
    detector = laft(small_encoder, ignore="lighting")
    image = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    shifted = image + 3 * detector.scorer.ignore_basis[0]
    torch.testing.assert_close(detector.scorer.transform(shifted), detector.scorer.transform(image), atol=1e-5, rtol=0)
    guide = laft(small_encoder, guide="lighting")
    assert (guide.scorer.transform(shifted) - guide.scorer.transform(image)).norm(dim=1).min() > 2.9


def test_with_both_the_ignored_concept_does_not_guide(small_encoder):
    detector = laft(small_encoder, guide="colour", ignore="lighting")
    overlap = detector.scorer.guide_basis @ detector.scorer.ignore_basis.T
    assert overlap.abs().max() < 1e-3


def test_the_prompt_pack_guides_by_default_and_words_matter(small_encoder, pictures):
    detector = laft(small_encoder)
    assert detector.scorer.guide_basis is not None and detector.scorer.ignore_basis is None
    first = detector.fit(pictures[:6]).predict(pictures[7]).score
    detector.describe("iron pipe")
    assert detector.threshold is None
    assert abs(detector.predict(pictures[7]).score - first) > 1e-6


def test_a_normal_scores_by_the_others_too_and_alone_gets_zero(small_encoder, pictures):
    detector = laft(small_encoder, ignore="lighting", neighbours=1).fit(pictures[:6])
    prediction = detector.predict(pictures[0])
    assert prediction.score == pytest.approx(0, abs=1e-6) and prediction.map is None
    assert detector.predict(pictures[7]).score > 1e-4
    assert len(detector.calibration.scores) == 6 and min(detector.calibration.scores) > 1e-4


def test_saved_and_loaded_it_scores_the_same(small_encoder, small_folder, pictures, tmp_path):
    import vlad

    detector = laft(small_encoder, ignore=["{} at noon", "{} at night"], dimensions=1).fit(pictures[:6])
    detector.save(tmp_path / "bolt.safetensors", pictures=False)
    loaded = vlad.load(tmp_path / "bolt.safetensors", encoder=small_encoder)
    assert loaded.options == detector.options and loaded.name == "metal bolt"
    assert loaded.predict(pictures[7]).score == pytest.approx(detector.predict(pictures[7]).score, abs=1e-6)
    assert (tmp_path / "bolt.safetensors").stat().st_size < 100_000


def test_nothing_is_said_before_fit(small_encoder, pictures):
    with pytest.raises(RuntimeError, match="fit"):
        laft(small_encoder).predict(pictures[0])


@pytest.mark.parametrize(
    ("concept", "error", "words"),
    [
        ("lightning", ValueError, "did you mean 'lighting'"),
        (["{} at noon"], ValueError, "two phrases or more"),
        (["{} at noon", " "], ValueError, "none of them empty"),
        ([["{} at noon"], []], ValueError, "none of them empty"),
        ([["{} at noon"], [3]], TypeError, "expected a word, a list of phrases"),
    ],
)
def test_wrong_concepts_say_what_is_allowed(concept, error, words):
    with pytest.raises(error, match=words):
        phrase_groups(concept)


def test_concepts_are_words_phrases_or_groups_of_phrases():
    assert phrase_groups("lighting") == [list(CONCEPTS["lighting"])]
    assert phrase_groups(("{} at noon", "{} at night")) == [["{} at noon", "{} at night"]]
    assert phrase_groups((("a {}", "b {}"), "c {}")) == [["a {}", "b {}"], ["c {}"]]


def test_wrong_options_are_refused(small_encoder):
    with pytest.raises(ValueError, match="dimensions is 64; expected 1 to 63"):
        Laft(small_encoder, dimensions=64)
    with pytest.raises(ValueError, match="neighbours is 0"):
        Laft(small_encoder, neighbours=0)
