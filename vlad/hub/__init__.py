"""What comes from elsewhere and goes there: weights and authors' files in (`vlad fetch`), detectors to share."""

DETECTOR = "detector.safetensors"  # in the repository of a shared detector
