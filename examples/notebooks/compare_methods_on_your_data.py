# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare methods on your data
#
# On labelled pictures in the layout of MVTec AD: `train/good`, `test/<kind>`, and `ground_truth/<kind>` with masks, in
# a folder for each category. It needs `pip install vlad-ad` (or `pip install .` in a clone) and no network; the drawn
# parts that come with the repository stand in for yours.

# %%
from collections import Counter

import vlad
from vlad.images import read

DATA = "folder:../parts"  # or "mvtec_ad:ROOT", "visa:ROOT", ...
NAME = "metal plate"

samples = vlad.datasets.load(DATA)
Counter((one.category, one.split, one.defect) for one in samples)

# %% [markdown]
# ## Without any good picture
#
# One encoder for all, so that only the methods differ. Values are in percent. The intervals below are 95 % of a
# bootstrap over pictures; with twelve pictures they are wide, and that is why they are printed.

# %%
encoder = vlad.Encoder.load("tiny")  # a demonstration; published numbers need the encoders of their papers
methods = ["patch_text", "winclip", "clip_surgery"]
report = vlad.evaluate({name: vlad.load(name, NAME, encoder=encoder) for name in methods}, samples)
print(report)
for row in report.select(metric="image_auroc"):
    low, high = row.interval
    print(f"{row.detector}: image AUROC {100 * row.value:.0f}, from {100 * low:.0f} to {100 * high:.0f}")

# %% [markdown]
# ## Is the difference more than chance?
#
# Both methods saw the same pictures, so they are compared picture by picture.

# %%
for one in report.compare(["image_auroc"]):
    print(f"{one.first} less {one.second}: {100 * one.difference.mean:+.1f} points, p = {one.difference.p:.2f}")

# %% [markdown]
# ## With good pictures, and beside something of your own
#
# `shots` are drawn from `train`. Anything with `predict(pictures)` can stand in the table.


# %%
class Grey:
    """A baseline: the darker, the worse."""

    def predict(self, pictures):
        return [255 - float(read(picture).mean()) for picture in pictures]


memory = {name: vlad.load(name, encoder=encoder) for name in ("patch_memory", "subspacead")}
few = vlad.evaluate(memory, samples, shots=4, seeds=2)
grey = vlad.evaluate({"grey": Grey()}, samples)
print(vlad.Report.join([few, grey, report]))

# %% [markdown]
# ## Take it along
#
# `report.html` has tables, curves and the worst errors in one file; `report.csv` and `predictions.csv` are for other
# tools.

# %%
report.save("compared")
print(report.to_markdown())
