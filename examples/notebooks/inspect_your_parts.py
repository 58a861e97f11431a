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
# # Inspect your parts
#
# From photos of good parts to verdicts on new ones. It needs `pip install vlad-ad` (or `pip install .` in a clone) and
# no network. The drawn parts that come with the repository stand in for yours: put your own folders in their place.

# %%
from pathlib import Path

import vlad

GOOD = sorted(Path("../parts/part/train/good").glob("*.jpg"))  # photos of good parts; 5 or more, 19 are better
NEW = sorted(Path("../parts/part/test").rglob("*.jpg"))  # photos to judge
NAME = "metal plate"  # what they show
len(GOOD), len(NEW)

# %% [markdown]
# ## Learn what good looks like
#
# The threshold comes from the good pictures alone, each compared with the others, and says what it promises.

# %%
detector = vlad.load(name=NAME)
detector.fit(GOOD)
print(f"threshold {detector.threshold:.4f}: {detector.calibration.note}")

# %% [markdown]
# ## Judge new parts
#
# `stream` takes any number of pictures and keeps none of them. The worst come first here.

# %%
predictions = sorted(detector.stream(NEW), key=lambda one: one.score, reverse=True)
for one in predictions:
    path = Path(one.source)
    print(f"{one.score:.4f}  {one.verdict:10}  {path.parent.name}/{path.name}")

# %% [markdown]
# What was marked on the worst one, and where:

# %%
worst = predictions[0]
for region in worst.regions()[:3]:
    print(region.location, region.box, f"peak {region.peak:.2f}")
worst.overlay()

# %% [markdown]
# And in words. With the embedded encoder they are a hint, no diagnosis:

# %%
explanation = vlad.explain(worst.source, worst, detector=detector)
print(explanation.to_markdown())

# %% [markdown]
# ## How good is it?
#
# Where you know which of the new parts are bad, count. Here the folder's name says it.

# %%
bad = [one.is_anomalous for one in predictions if Path(one.source).parent.name == "spoilt"]
good = [one.is_anomalous for one in predictions if Path(one.source).parent.name == "good"]
print(f"found {sum(bad)} of {len(bad)} bad parts; {sum(good)} of {len(good)} good ones called bad")

# %% [markdown]
# ## Keep it, and go on learning
#
# Further good pictures join the known ones, as if all had been given at once. The file goes to `vlad score --detector`
# and `vlad serve`.

# %%
detector.add([path for path in NEW if path.parent.name == "good"])
detector.save("plate.safetensors")
again = vlad.load("plate.safetensors")
print(f"threshold {again.threshold:.4f}: {again.calibration.note}")
