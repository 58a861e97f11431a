"""`vlad fetch`: weights from where they are published, or from a mirror, into the place where they are looked for."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlad.cli.progress import ProgressBar
from vlad.cli.shared import AsJson, guarded

if TYPE_CHECKING:
    from vlad.hub.fetch import Plan

ADVISED = {  # what to take first, and why
    "ViT-B-16-plus-240/laion400m_e32": "WinCLIP's encoder, the usual first step from `tiny`",
    "ViT-L-14-336-quickgelu/openai": "what most learned methods were trained on",
    "dino:base-registers": "for good pictures without words: patch_memory, subspacead, inp_former",
}


def fetch(
    name: Annotated[str | None, typer.Argument(metavar="ENCODER|METHOD", help="`vlad fetch --list`.")] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="Which of a method's files: the data set that it was trained on.")
    ] = None,
    mirror: Annotated[
        str, typer.Option("--from", metavar="FOLDER|URL", help="Files fetched elsewhere: OWNER/REPOSITORY/FILE in it.")
    ] = "",
    listed: Annotated[bool, typer.Option("--list", help="What can be fetched, and what it is for.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say size, licence and place; fetch nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch an encoder, or the file that a method's authors published with the encoder it needs, and try it once.

    Example: vlad fetch ViT-B-16-plus-240/laion400m_e32
    """

    def work() -> int:
        if listed:
            return _list(as_json)
        if name is None:
            raise ValueError("say what to fetch: an encoder or a method (`vlad fetch --list` shows both)")
        from vlad.hub import fetch as hub

        plan = hub.plan(name, trained_on, mirror)
        facts = [_facts(one) for one in plan.files]
        for one in [] if as_json else facts:
            print(f"{one['file']}  {_size(one['bytes'])}  licence: {one['licence'] or 'not stated'}  {one['place']}")
        if dry:
            print(json.dumps({"name": name, "files": facts}) if as_json else f"to fetch: {_size(plan.size)}")
            return 0
        with ProgressBar("bytes", quiet=as_json) as advance:
            places = hub.fetch(plan, advance)
        seconds = hub.tried(plan, places)
        used = hub.usage(plan, places)
        files = [{**one, "path": str(places[found.needed])} for one, found in zip(facts, plan.files, strict=True)]
        if as_json:
            print(json.dumps({"name": name, "files": files, "seconds_a_picture": round(seconds, 3), "use": used}))
        else:
            print(_done(plan, seconds, used))
        return 0

    guarded(work, "; say it again, and it goes on where it stopped")


def _list(as_json: bool) -> int:
    from vlad.hub.needed import published

    methods = [
        {"name": one.method, "trained_on": one.trained_on, "licence": one.licence, "place": one.place}
        for one in published()
    ]
    if as_json:
        print(json.dumps({"encoders": ADVISED, "methods": methods}))
        return 0
    for encoder, why in ADVISED.items():
        print(f"{encoder}  {why}")
    for one in methods:
        print(f"{one['name']} --trained-on {json.dumps(one['trained_on'])}  licence: {one['licence']}  {one['place']}")
    print("and every name of `vlad list encoders`, hf-hub:OWNER/REPOSITORY, dino:small|base|large", file=sys.stderr)
    return 0


def _facts(found: Any) -> dict[str, Any]:
    place = f"here: {found.here}" if found.here else found.place
    return {"file": found.name, "bytes": found.size, "licence": found.licence, "place": place}


def _size(count: int | None) -> str:
    return "size not stated" if count is None else f"{count / 1e6:,.1f} MB"


def _done(plan: "Plan", seconds: float, used: str) -> str:
    return f"{plan.name} loads and scores a picture in {seconds:.2f} s here; use it:\n  {used}"
