"""Pictures for the tests of the server."""

import io

import numpy as np
from PIL import Image


def drawn(seed, spot=False):
    """PNG bytes of a grey grain, with a white spot where asked."""
    grain = np.random.default_rng(seed).normal(120, 12, (96, 128, 1)).clip(0, 255).astype(np.uint8)
    pixels = np.repeat(grain, 3, axis=2)
    if spot:
        pixels[40:60, 50:80] = 255
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG")
    return kept.getvalue()


def upload(*contents, key="files"):
    """The `files=` of a request."""
    return [(key, (f"parts/{number:03}.png", content)) for number, content in enumerate(contents)]
