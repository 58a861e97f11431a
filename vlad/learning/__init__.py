"""Learned methods: their common base, their files, and the loop that teaches them. `train.train` is `vlad.train`."""
