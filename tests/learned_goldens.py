"""What the tests of learned methods do with their goldens: weights, the training batch, gradients and steps."""

import numpy as np
import torch

from vlad.learning.scorer import Batch


def close(ours, theirs, atol=1e-5, **more):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0, **more)


def weights_file(path, scorer, draw):
    """An adapter's file with what `draw` gives for each learned tensor's name and shape."""
    tensors = {name: draw(name, tuple(value.shape)) for name, value in scorer.learned().items()}
    scorer.load_learned(tensors).save_adapter(path, recipe={})
    return path


def batch_of(scorer, golden, golden_weights, names=("a", "b")):
    """The golden's: an anomalous picture with a mask, then, where there are two names, a normal one."""
    mask, count = torch.from_numpy(golden["train_mask"]).float(), len(names)
    pictures = [golden_weights.image(int(golden["seed"]) + number, 200) for number in range(count)]
    with torch.no_grad():
        features = scorer.image_side(scorer.encoder.pixels(pictures, 112))
    return Batch(features, torch.stack([mask, 0 * mask][:count]), torch.tensor([1, 0][:count]), list(names))


def check_gradients(golden, scorer, loss, tolerance, key="", named=str, none=()):
    """Of all that learns, against every gradient and norm of the golden; `named` makes our names of theirs.

    Those in `none` are zero in exact arithmetic, and so is the encoder's, which gets none.
    """
    loss.backward()
    found = {name: one.grad for name, one in scorer.named_parameters() if one.grad is not None}
    theirs = [named(name) for name in golden[f"{key}grad_names"]]
    assert sorted(found) == sorted(theirs)
    for name, norm in zip(theirs, golden[f"{key}grad_norms"], strict=True):
        if name in none:
            assert found[name].norm() < 1e-6
        else:
            np.testing.assert_allclose(found[name].norm(), norm, rtol=tolerance, err_msg=name)
    for name in golden[f"{key}grad_names"]:
        if f"{key}grad_{name}" in golden:
            expected = golden[f"{key}grad_{name}"]
            close(found[named(name)], expected, tolerance * np.abs(expected).max(), err_msg=name)
    assert all(one.grad is None for one in scorer.encoder.model.parameters())


def check_steps(golden, scorer, batch, optimizer, tolerance, key="train_totals_3_steps"):
    """The loss before each of three steps."""
    totals = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = scorer.loss(batch)
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(totals, golden[key], rtol=tolerance)
    return totals
