"""What clients send and get, as forms: they check what comes in, and the OpenAPI document is made of them."""

from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from vlad.thresholds import LARGEST

Threshold = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Box = tuple[Share, Share, Share, Share]
Words = Annotated[str, Field(min_length=1, max_length=200)]
Phrases = Annotated[list[Words], Field(min_length=1, max_length=100)]
Maps = Literal["none", "jpeg", "png", "npy"]
Pages = Annotated[
    Literal["first", "all"] | None, Field(description="Of a file with several; else as the detector was made.")
]


class Strict(BaseModel):
    """A body in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class Picture(Strict):
    """One picture in JSON."""

    name: str = Field("picture", max_length=1000, description="What its line calls it.")
    data: Base64Bytes = Field(description="The bytes of a file: PNG, JPEG, TIFF, WebP, BMP, ...")


class ScoreBody(Strict):
    """Pictures to score."""

    detector: str
    pictures: list[Picture] = Field(min_length=1)
    maps: Maps = "none"
    threshold: Threshold | None = Field(None, description="Instead of the detector's own.")
    pages: Pages = None


class Prompts(Strict):
    """Words as data: phrases with {} where the name goes."""

    normal: Phrases
    anomalous: Phrases
    templates: Phrases | None = None


class Describe(Strict):
    """A detector from words alone."""

    words: Words = Field(description='What the pictures show: "metal bolt".')
    method: str = "patch_text"
    prompts: Prompts | None = None


class Change(Strict):
    """What is to be different; what is left out stays."""

    threshold: Threshold | None = None
    map_threshold: Threshold | None = None
    ignore: Annotated[list[Box], Field(max_length=100)] | None = Field(
        None, description="Places that do not count: boxes (x0, y0, x1, y1) as shares of width and height."
    )


class Line(BaseModel):
    """One picture, as in `results.jsonl`; `overlay` and `map` where they were asked for, as data: addresses."""

    model_config = ConfigDict(extra="allow")

    source: str
    verdict: Literal["anomalous", "normal", "unsure", "uncalibrated"] | None
    score: float | None
    threshold: float | None
    p_value: float | None
    is_anomalous: bool | None
    name: str | None
    size: list[int] | None
    regions: list[dict[str, Any]]
    error: str | None


class Scored(BaseModel):
    """Lines in the order of the pictures, and which detector they are of."""

    detector: str
    version: int
    results: list[Line]


class Facts(BaseModel):
    """A detector as it is now."""

    name: str
    version: int
    method: str
    encoder: str
    digest: str
    words: str | None
    references: int
    threshold: float | None
    map_threshold: float | None
    ignore: list[list[float]] | None = Field(description="Boxes and polygons that do not count.")
    masked: bool = Field(description="A mask says what does not count; it is in the detector's file.")
    rate: float | None = Field(description="Share of good pictures that may be called anomalous, as promised.")
    note: str | None
    normal_scores: list[float] = Field(description="Of the good pictures, each compared with the others.")


class JobFacts(BaseModel):
    """How far a piece of work is; `result` is what its request would have been answered."""

    id: str
    kind: str
    detector: str
    state: Literal["waiting", "running", "done", "failed"]
    stage: str
    done: int
    total: int
    result: dict[str, Any] | None
    error: str | None


class Explained(BaseModel):
    """What is wrong with a picture, in words."""

    detector: str
    version: int
    explanation: dict[str, Any]
    markdown: str


class ServerFacts(BaseModel):
    """What this server is, allows and can."""

    vlad: str
    encoder: str
    read_only: bool
    max_body: int
    max_pictures: int
    max_pixels: int


class Problem(BaseModel):
    """What was given, what is allowed, how to mend it."""

    error: str
