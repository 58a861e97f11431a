"""What training learns from: data sets, drawn pictures, and good photos with painted defects."""

import numpy as np
import pytest
from PIL import Image
from small_sets import write_category

from vlad.learning.data import Annotated, gather, mosaic
from vlad.learning.features import mask_at
from vlad.synthetic.photos import another_shot, foreground, paint


def bolt(side=96):
    """A dark disc on a white ground."""
    y, x = np.mgrid[:side, :side] - side / 2
    noise = np.random.default_rng(0).normal(0, 3, (side, side, 1))
    picture = np.where((x**2 + y**2 < (side / 3) ** 2)[..., None], 80, 240) + noise
    return np.repeat(picture.clip(0, 255).astype(np.uint8), 3, -1)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "metal_bolt" / "good"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.roll(bolt(), number, 1)).save(folder / f"{number}.png")
    return folder


def test_of_a_data_set_the_test_pictures_are_learned_from_and_the_normals_of_its_train_split_compared_with(tmp_path):
    write_category(tmp_path / "set" / "nut")
    found = gather(f"folder:{tmp_path / 'set'}", 10, 0)
    assert {item.label for item in found.items} == {0, 1}
    assert found.sources == ("set",)
    assert {item.category for item in (*found.items, *found.normals)} == {"set/nut"}
    for item in found.items:
        one = item.read()
        assert one.mask.any() == bool(item.label) and one.mask.shape == one.picture.shape[:2] and one.name == "nut"


def test_a_loss_over_pixels_alone_leaves_out_what_nobody_has_marked_and_counts_it(tmp_path, caplog):
    write_category(tmp_path / "set" / "nut")
    masks = sorted((tmp_path / "set" / "nut" / "ground_truth").rglob("*.png"))
    before = len(gather(tmp_path / "set", 10, 0, labels=False).items)
    extra = tmp_path / "set" / "nut" / "test" / "unmarked"
    extra.mkdir()
    Image.fromarray(bolt()).save(extra / "000.png")
    assert masks and len(gather(tmp_path / "set", 10, 0, labels=False).items) == before
    assert "1 anomalous pictures are left out: nobody has marked where" in caplog.text


def test_pictures_of_one_kind_cannot_be_learned_from(tmp_path):
    write_category(tmp_path / "set" / "nut")
    for file in (tmp_path / "set" / "nut" / "test").rglob("*"):
        if file.is_file() and file.parent.name == "good":
            file.unlink()
    with pytest.raises(ValueError, match="needs normal and anomalous pictures"):
        gather(tmp_path / "set", 10, 0)


def test_drawn_pictures_are_half_normal_the_same_for_the_same_seed_and_each_has_its_own_reference():
    found, again, other = gather("synthetic", 4, 1), gather("synthetic", 4, 1), gather("synthetic", 4, 2)
    assert [item.label for item in found.items] == [0, 1, 0, 1] and found.sources == ("synthetic",)
    for one, two, three, normal in zip(found.items, again.items, other.items, found.normals, strict=True):
        first, reference = one.read(), normal.read()
        assert (first.picture == two.read().picture).all() and (first.picture != three.read().picture).any()
        assert first.mask.any() == bool(one.label) and first.name
        assert normal.category == one.category and not reference.mask.any()
        assert (reference.picture != first.picture).any()


def test_good_photos_get_painted_defects_where_the_mask_says_and_are_called_by_their_part(photos):
    found = gather(f"synthetic:{photos}", 8, 0)
    assert [item.label for item in found.items] == [0] * 3 + [1] * 5 and len(found.normals) == 3
    for item in found.items:
        one = item.read()
        assert one.name == "metal bolt" and one.mask.any() == bool(item.label)


def test_a_painted_photo_is_changed_inside_its_mask_and_stays_grey():
    square = np.asarray(Image.fromarray(bolt()).resize((128, 128), Image.Resampling.BICUBIC)).astype(int)
    changed = {True: [], False: []}
    for seed in range(6):
        painted, mask, kinds = paint(np.random.default_rng(seed), bolt(), 128)
        assert kinds and mask.any() and (painted == painted[..., :1]).all()
        difference = np.abs(painted.astype(int) - square).max(-1)
        changed[True].append(difference[mask].mean())
        changed[False].append(difference[~mask].mean())
    assert np.mean(changed[True]) > 10 * np.mean(changed[False])


def test_the_part_is_found_on_a_plain_ground_and_is_everything_where_there_is_none():
    part = foreground(bolt().astype(np.float32) / 255)
    assert part[48, 48] and not part[2, 2] and 0.25 < part.mean() < 0.45
    texture = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    assert foreground(texture).all()


def test_another_shot_of_a_thing_is_near_it_but_not_it():
    again = another_shot(np.random.default_rng(0), bolt())
    assert again.shape == bolt().shape and (again != bolt()).any()
    assert np.abs(again.astype(int) - bolt()).mean() < 40


def test_a_mosaic_has_four_pictures_with_their_masks_in_its_quarters():
    parts = [Annotated(np.full((10, 20, 3), 50 * n, np.uint8), np.full((10, 20), n == 3), f"n{n}") for n in range(4)]
    made = mosaic(parts, 32)
    assert made.picture.shape == (32, 32, 3) and made.name == "n0"
    assert [int(made.picture[y, x, 0]) for y, x in ((2, 2), (2, 20), (20, 2), (20, 20))] == [0, 50, 100, 150]
    assert made.mask[16:, 16:].all() and made.mask.sum() == 256


def test_a_mask_at_another_size_is_anomalous_where_more_than_half_is():
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True
    assert mask_at(mask, 4)[:, 0].all() and not mask_at(mask, 4)[:, 2:].any()
    assert (mask_at(mask, 8) == mask).all()


def moved(place, old, new):
    (place / new).parent.mkdir(parents=True, exist_ok=True)
    (place / old).rename(place / new)


def test_without_any_mask_every_label_is_learned_from_and_no_pixel(tmp_path, caplog):
    write_category(tmp_path / "set" / "nut", normals=4, anomalous=3, masks=False)
    found = gather(tmp_path / "set", 10, 0)
    assert [(item.label, item.marked) for item in found.items] == [(0, False)] * 4 + [(1, False)] * 3
    assert not found.items[-1].read().mask.any() and "nothing about places" in caplog.text


def test_beside_marked_pictures_unmarked_ones_teach_scores_alone_or_are_left_out(tmp_path, caplog):
    write_category(tmp_path / "set" / "nut", normals=4, anomalous=3)
    write_category(tmp_path / "set" / "bolt", normals=2, anomalous=2, masks=False)
    found = gather(tmp_path / "set", 10, 0)
    assert {(one.category, one.label): one.marked for one in found.items} == {
        ("set/bolt", 0): True,
        ("set/bolt", 1): False,
        ("set/nut", 0): True,
        ("set/nut", 1): True,
    }
    assert "2 anomalous pictures have no mask: they teach scores alone" in caplog.text
    assert len(gather(tmp_path / "set", 10, 0, labels=False).items) == len(found.items) - 2


def test_where_the_test_split_has_one_kind_another_is_learned_from_and_named(tmp_path, caplog):
    nut = write_category(tmp_path / "set" / "nut", normals=4, anomalous=3)
    moved(nut, "test/spot", "train/spot")
    masks = [nut / "ground_truth" / "spot" / f"{number:03}_mask.png" for number in range(3)]
    (nut / "train" / "spot" / "mask").mkdir()
    for number, mask in enumerate(masks):
        mask.rename(nut / "train" / "spot" / "mask" / f"{number:03}.png")
    found = gather(tmp_path / "set", 10, 0)
    assert [(item.label, item.marked) for item in found.items] == [(0, True)] * 6 + [(1, True)] * 3
    assert len(found.normals) == 6 and "learned from 9 of train" in caplog.text
    with pytest.raises(ValueError, match="in one split; got 4 normal and 0 anomalous ones"):
        gather(tmp_path / "set", 10, 0, split="test")


def test_a_split_that_is_named_is_taken(tmp_path):
    nut = write_category(tmp_path / "set" / "nut", normals=4, anomalous=3)
    (nut / "validation").mkdir()
    for kind in ("good", "spot"):
        moved(nut, f"test/{kind}/000.png", f"validation/{kind}/000.png")
    found = gather(tmp_path / "set", 10, 0, split="validation")
    assert [item.label for item in found.items] == [0, 1] and len(found.normals) == 6
    assert len(gather(tmp_path / "set", 10, 0).items) == 5
