"""What OpenAI's clients get from the endpoint: a table of calls.

    make serve PORT=8100
    python tests/benchmarks/openai_clients.py http://127.0.0.1:8100 [--image FILE]

The calls are OpenAI's Python client's. LiteLLM's follow where it can be imported, and the npm client's where Node finds
the package `openai` from the working folder (`openai_clients.mjs`); neither is a dependency.
"""

import argparse
import base64
import importlib.util
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from PIL import Image

HERE = Path(__file__).resolve().parent
IMAGE = HERE.parents[1] / "catalogs" / "images" / "star-cup.jpg"
SIZES = ("auto", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "256x256", "1000x1000")
EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"stream": False},
    {"partial_images": 0},
    {"stream": True},
    {"stream": True, "partial_images": 2},
    *({"size": size} for size in SIZES),
    {"n": 2},
    {"quality": "hd", "input_fidelity": "high", "user": "u", "model": "gpt-image-1"},
    {"response_format": "b64_json"},
    {"response_format": "url"},
    {"output_format": "webp", "output_compression": 80},
    {"background": "transparent"},
    {"background": "transparent", "output_format": "jpeg"},
    {"extra_body": {"seed": 7}},
)
LITELLM = ({}, {"size": "1024x1024"}, {"n": 2}, {"quality": "high"}, {"background": "transparent"}, {"user": "u"})


def shown(encoded: str | None) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded or "")))
    return f"{image.format} {image.mode} {image.width}x{image.height}"


def row(client: str, call: str, make: Callable[[], str]) -> None:
    """Prints what a call gives, or how it is refused."""
    try:
        answer = make()
    except openai.APIError as error:  # LiteLLM's are such errors too
        answer = f"{getattr(error, 'status_code', '')} {error}".replace("\n", " ")[:160]
    print(f"| {client} | {call} | {answer} |", flush=True)


def edit(client: openai.OpenAI, images: Any, options: dict[str, Any]) -> str:
    # A prompt of its own: an image that is made already has no previews.
    made: Any = client.images.edit(image=images, prompt=f"a cup on a marble slab, {options}"[:80], **options)
    if options.get("stream"):
        events = list(made)
        return f"{', '.join(event.type for event in events)}: {shown(events[-1].b64_json)}"
    return f"{len(made.data)} x {shown(made.data[0].b64_json)}, size {made.size}, background {made.background}"


def by_litellm(url: str, photo: bytes) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its prices are else fetched from the web
    import litellm

    def call(options: dict[str, Any]) -> str:
        image = io.BytesIO(photo)
        image.name = "a.jpg"
        made = litellm.image_edit(
            model="openai/gpt-image-1",
            image=image,
            prompt="a cup on a marble slab",
            api_base=f"{url}/v1",
            api_key="none",
            **options,
        )
        return f"{len(made.data)} x {shown(made.data[0].b64_json)}"

    for options in LITELLM:
        row("litellm", f"image_edit {options}", lambda options=options: call(options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--image", type=Path, default=IMAGE)
    args = parser.parse_args()
    photo = args.image.read_bytes()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key="none", max_retries=0, timeout=300)
    print("| client | call | answer |\n|---|---|---|")
    for options in EDITS:
        row("openai", f"images.edit {options}", lambda options=options: edit(client, ("a.jpg", photo), options))
    for number in (1, 2, 16):
        images = [(f"{index}.jpg", photo) for index in range(number)]
        row("openai", f"images.edit, {number} in a list", lambda images=images: edit(client, images, {}))
    row("openai", "images.generate", lambda: str(client.images.generate(prompt="a cup")))
    row("openai", "models.list", lambda: str([model.id for model in client.models.list()]))
    if importlib.util.find_spec("litellm"):
        by_litellm(args.url, photo)
    if shutil.which("node"):
        script = (HERE / "openai_clients.mjs").read_bytes()
        # From standard input: Node then looks for packages from the working folder.
        command = ["node", "--input-type=module", "-", args.url, str(args.image.resolve())]
        subprocess.run(command, input=script, check=False)


if __name__ == "__main__":
    main()
