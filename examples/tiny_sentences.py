"""What train_tiny.py says of the drawn pictures: random sentences of a good and a defective thing, by any name."""

import json
import re
import tomllib

import numpy as np

from vlad.encoders import tiny
from vlad.files import resource
from vlad.synthetic.defects import WORDS

CONFIG = json.loads(resource(f"{tiny.FOLDER}/{tiny.CONFIG}").read_text(encoding="utf-8"))
SENTENCES = tomllib.loads(resource("adapters/weights/tiny/sentences.toml").read_text(encoding="utf-8"))

STATES = {  # words that say how a thing is, which no name may be
    word
    for phrases in (
        *(SENTENCES[state] for state in ("normal", "anomalous")),
        *SENTENCES["adjectives"].values(),
        *WORDS.values(),
    )
    for phrase in phrases
    for word in phrase.split()
}
TOKENIZER = tiny.Tokenizer(CONFIG["tokenizer"]["merges"], CONFIG["model_cfg"]["text_cfg"]["context_length"])
STARTS = [piece for piece in TOKENIZER.encoder if re.fullmatch("[a-z]+", piece)]  # of words
ENDS = [word.removesuffix("</w>") for word in TOKENIZER.encoder if re.fullmatch("[a-z]{3,}</w>", word)]
ENDS = [word for word in ENDS if word not in STATES]  # of words, or words by themselves


def _pick(rng: np.random.Generator, words: list[str] | tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def kind_phrase(rng: np.random.Generator, kind: str) -> str:
    """A thing with a kind of defect, by a noun ("{} with a crack") or an adjective ("cracked {}")."""
    if rng.random() < 0.3:
        return _pick(rng, SENTENCES["adjectives"][kind]) + " {}"
    return "{} with " + _pick(rng, WORDS[kind])


def any_name(rng: np.random.Generator, objects: list[str]) -> str:
    """Something a user may call a thing: of the list, what a picture shows, or any word, heard of or not."""
    if (which := rng.random()) < 0.3:
        return "".join(_pick(rng, STARTS) for _ in range(rng.choice([0, 0, 1, 2]))) + _pick(rng, ENDS)
    return _pick(rng, objects) if which < 0.5 else _pick(rng, SENTENCES["names"])


def state_phrases(rng: np.random.Generator, count: int) -> list[str]:
    """`count` random normal sentences, then as many anomalous ones, "{}" for the name; half of these name a defect."""
    sentences = []
    for state in ("normal", "anomalous"):
        for _ in range(count):
            phrase = _pick(rng, SENTENCES[state])
            if state == "anomalous" and rng.random() < 0.5:
                phrase = kind_phrase(rng, _pick(rng, list(WORDS)))
            sentences.append(_pick(rng, SENTENCES["templates"]).format(phrase))
    return sentences


def named(rng: np.random.Generator, phrases: list[str], objects: list[str]) -> list[str]:
    """The phrases with names; half of the time all have the same, as they have when a detector is asked."""
    name = any_name(rng, objects) if rng.random() < 0.5 else None
    return [phrase.format(name or any_name(rng, objects)) for phrase in phrases]


def kind_sentences(rng: np.random.Generator, objects: list[str]) -> list[str]:
    """One sentence for a good thing, then one for each kind of defect, all with the same template and name."""
    template, name = _pick(rng, SENTENCES["templates"]), any_name(rng, objects)
    phrases = [_pick(rng, SENTENCES["normal"]), *(kind_phrase(rng, kind) for kind in WORDS)]
    return [template.format(phrase.format(name)) for phrase in phrases]
