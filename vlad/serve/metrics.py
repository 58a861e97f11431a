"""What Prometheus is told. Labels are patterns of routes, names of detectors and words of our own, never a client's."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from vlad.serve.shelf import Shelf

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SCORES = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("vlad_requests_total", "Requests", ["route", "code"], registry=self.registry)
        self.seconds = Histogram("vlad_request_seconds", "Time of a request", ["route"], registry=self.registry)
        self.pictures = Counter("vlad_pictures_total", "Pictures by verdict", ["outcome"], registry=self.registry)
        self.passes = Histogram(
            "vlad_pass_pictures", "Pictures of a pass", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.queue = Gauge("vlad_queue_pictures", "Pictures waiting or in work", registry=self.registry)
        self.version = Gauge("vlad_detector_version", "Version in use", ["name"], registry=self.registry)
        self.scores = Histogram(
            "vlad_score", "Scores, whose drift shows", ["name"], buckets=SCORES, registry=self.registry
        )

    def text(self, shelf: "Shelf", waiting: int) -> bytes:
        """All of it in Prometheus' text form."""
        self.queue.set(waiting)
        self.version.clear()
        for held in shelf.all():
            self.version.labels(held.name).set(held.version)
        return generate_latest(self.registry)
