"""A language model asked about clips: once an event, from three views of it, and of rules in plain words now and then.

What it says stands beside an event or a line; it never changes a score, and an event stays one without an answer.

1. An event: four frames round its loudest moment, a quarter of a short window apart, make three views: the loudest one
   whole, the same bright only where the detector's map is, and the event's place in all four. Each is a closed
   question; their shares of yes are averaged with the weights .6, .3 and .1 of the views answered: `confirmed`.
2. Rules: a frame every so often is asked about each rule. Whether any is broken is put to the majority of the last
   three such frames, and smoothed.

Sources: AnyAnomaly (arXiv:2503.04504) for views and weights; it asks every 24 frames, reads numbers out of sentences,
and its position view has windows of CLIP where here is the map. AnomalyRuler (arXiv:2407.10299) for deduction, majority
and smoothing; it describes every frame first, and looks for keywords in what was said.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlad.explain.case import Case, Rule
from vlad.explain.interview.questions import CHOICE_TOKENS, NO, UNSURE, YES, CaseViews, rule_question
from vlad.explain.interview.votes import Vote
from vlad.explain.reasoners.asking import Asker
from vlad.explain.reasoners.protocol import Ask, Choice, Reasoner
from vlad.images.sizes import fitted, resized
from vlad.prediction import Prediction
from vlad.video.anomalyruler import ALPHA, Average
from vlad.video.anyanomaly import WEIGHTS, attended, key_frames
from vlad.video.events import Event
from vlad.video.events import Rule as EventRule
from vlad.video.reading import Frame

LEAST_WINDOW = 1.0  # seconds from which an event's frames are taken, at least
FRAMES = 12  # of a window that are held
CELL = 320  # px, longest side of a place in the sheet
LAST = 3  # answers whose majority counts
MAX_SECONDS = 300.0  # of all questions about one event or frame
NOTHING_SHOWN = "this reasoner is shown crops alone, and the event has no place to crop"


class Around:
    """The frames round the loudest moment of the open event, evenly thinned."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.recent: deque[tuple[Frame, float]] = deque()
        self.kept: list[tuple[Frame, float]] = []
        self.peak = 0.0

    @staticmethod
    def of(rule: EventRule, every: float) -> "Around":
        """For the events of a rule, of frames that come every so many seconds."""
        return Around(max(rule.least, 4 * every, LEAST_WINDOW))

    def __call__(self, frame: Frame, value: float, loudest: bool) -> None:
        """The next frame; `loudest`: of the open event so far."""
        while self.recent and frame.time - self.recent[0][0].time > self.window / 2:
            self.recent.popleft()
        spaced = not self.recent or frame.time - self.recent[-1][0].time >= self.window / FRAMES
        if loudest:
            self.kept, self.peak = [*self.recent, (frame, value)], frame.time
        elif spaced and self.kept and frame.time - self.peak <= self.window / 2:
            self.kept.append((frame, value))
        if spaced:
            self.recent.append((frame, value))

    def four(self) -> list[np.ndarray]:
        """Four pictures over the window, the loudest among them, in order of time; of fewer the last again."""
        pictures = [frame.picture for frame, _ in self.kept]
        if len(pictures) < 4:
            return pictures + pictures[-1:] * (4 - len(pictures))
        return [pictures[k] for k in key_frames(np.array([value for _, value in self.kept])).four]


@dataclass
class Witness:
    """Asks a reasoner about clips.

    Attributes:
        name: what is seen, in words.
        rules: asked of an event's loudest frame.
        every: seconds after which a frame is asked about the rules, event or not; None: only events are.
        errors: one sentence for each kind of question that got no usable answer.
    """

    reasoner: Reasoner
    name: str | None = None
    rules: Sequence[Rule] = ()
    every: float | None = None
    errors: list[str] = field(default_factory=list)

    def of(self, event: Event, four: Sequence[np.ndarray], peak: np.ndarray, prediction: Prediction) -> Event:
        """The event with what the reasoner says of it.

        Args:
            four: uint8 RGB [H, W, 3] each, in order of time.
            peak: the loudest frame. prediction: of it.
        """
        if not self._sees():
            return event
        asker = Asker(self.reasoner, MAX_SECONDS)
        shares = [self._share(asker, event, view) for view in self._views(event, four, peak, prediction)]
        known = [
            (weight, share)
            for weight, share in zip(WEIGHTS[3 - len(shares) :], shares, strict=True)
            if share is not None
        ]
        total = sum(weight for weight, _ in known)
        confirmed = sum(weight * share for weight, share in known) / total if known else None
        broken = self._broken(asker, peak) if self.rules else None
        self._note(asker)
        return replace(event, confirmed=confirmed, broken=tuple(broken or ()))

    def deduced(self, picture: np.ndarray) -> list[str] | None:
        """Ids of the rules that a frame breaks; None without a usable answer."""
        if not self._sees():
            return None
        asker = Asker(self.reasoner, MAX_SECONDS)
        broken = self._broken(asker, picture)
        self._note(asker)
        return broken

    def _sees(self) -> bool:
        """Whether it can be asked at all; why not is an error."""
        try:
            problem = "" if self.reasoner.caps.max_images else f"{self.reasoner.name} does not see pictures"
        except Exception as error:  # a server that is down, or whatever a reasoner of the user's own raises
            problem = str(error)
        self.errors += [problem] if problem and problem not in self.errors else []
        return not problem

    def _note(self, asker: Asker) -> None:
        self.errors += [error for error in asker.errors if error not in self.errors]

    def _views(
        self, event: Event, four: Sequence[np.ndarray], peak: np.ndarray, prediction: Prediction
    ) -> list[tuple[str, np.ndarray]]:
        """(what it is, picture): whole, position, sheet; where whole pictures may not be sent the sheet alone."""
        caps, views = self.reasoner.caps, []
        if caps.send == "all":
            views.append(("QUERY", fitted(peak, caps.longest_side)))
            seen = peak
            if prediction.map is not None:
                seen = attended(peak, replace(prediction, size=peak.shape[:2]).full_map())
            views.append(("QUERY, dark where nothing stood out", fitted(seen, caps.longest_side)))
        if event.region is not None:
            words = "QUERY, one place at four moments: upper left, upper right, lower left, lower right, in this order"
            views.append((words, sheet(four, event.region.box, prediction.size)))
        elif views:
            words = "QUERY at four moments: upper left, upper right, lower left, lower right, in this order"
            views.append((words, sheet(four, (0, 0, prediction.size[1], prediction.size[0]), prediction.size)))
        else:
            self.errors += [NOTHING_SHOWN] if NOTHING_SHOWN not in self.errors else []
        return views

    def _share(self, asker: Asker, event: Event, view: tuple[str, np.ndarray]) -> float | None:
        wrong = "something that is damaged, missing, out of place or does not belong there"
        words = (
            f"The pictures show: {self.name or 'what a camera sees (its name is not known)'}.\n"
            f"Can this be seen in them: {event.phrase or wrong}? It counts however small it is."
        )
        question = Ask((*view, words), Choice((YES, NO, UNSURE)), max_tokens=CHOICE_TOKENS)
        vote = Vote.of(asker.ask(question), (YES, NO, UNSURE))
        return None if vote is None else vote.share((YES,), (NO,))

    def _broken(self, asker: Asker, picture: np.ndarray) -> list[str] | None:
        if self.reasoner.caps.send != "all":  # rules are about whole pictures
            return None
        case = Case(picture, self.name, (), (), tuple(self.rules), {}, None, "uncalibrated")
        views, found, answered = CaseViews.of(case, self.reasoner.caps), [], 0
        for rule in self.rules:
            if rule.kind == "ignore":
                continue
            vote = Vote.of(asker.ask(rule_question(views, rule)), (YES, NO, UNSURE))
            share = None if vote is None else vote.share((NO,), (YES,))
            answered += share is not None
            found += [rule.id] if share is not None and share > 0.5 else []
        return found if answered else None


class Deduction:
    """Rules over time: what the last frames that were asked say together."""

    def __init__(self, witness: Witness) -> None:
        self.witness, self.due = witness, 0.0
        self.last: deque[bool] = deque(maxlen=LAST)
        self.average = Average(ALPHA)

    def __call__(self, frame: Frame, before: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """For the line of a frame: `broken` rules, whether the `majority` of the last three breaks any, `smoothed`.

        None where it is not due, or nothing usable was said. `before`: what an earlier run recorded of this frame.
        """
        every = self.witness.every
        if every is None or frame.time < self.due - 1e-6:
            return None
        self.due = frame.time + every
        broken = before["broken"] if before else self.witness.deduced(frame.picture)
        if broken is None:
            return None
        self.last.append(bool(broken))
        majority = 2 * sum(self.last) > len(self.last)
        return {"broken": broken, "majority": majority, "smoothed": self.average(float(bool(broken)))}


def sheet(four: Sequence[np.ndarray], box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """uint8 [2 h, 2 w, 3]: a place, grown by half, in four pictures, row by row in time.

    `box` is in pixels of a file of `size` (H, W); the pictures may be smaller.
    """
    cells = []
    for picture in four:
        high, wide = picture.shape[:2]
        x0, x1 = (box[k] * wide / size[1] for k in (0, 2))
        y0, y1 = (box[k] * high / size[0] for k in (1, 3))
        dx, dy = (x1 - x0) / 4, (y1 - y0) / 4
        rows = slice(max(0, int(y0 - dy)), min(high, max(int(y1 + dy), int(y0 - dy) + 8)))
        columns = slice(max(0, int(x0 - dx)), min(wide, max(int(x1 + dx), int(x0 - dx) + 8)))
        cells.append(picture[rows, columns])
    scale = CELL / max(cells[0].shape[:2])
    shape = tuple(max(1, round(side * scale)) for side in cells[0].shape[:2])
    first, second, third, fourth = (resized(np.ascontiguousarray(cell), shape) for cell in cells)
    return np.concatenate([np.concatenate([first, second], 1), np.concatenate([third, fourth], 1)])
