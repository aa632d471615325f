"""The engine: today's step engine and denoiser in one process, with pools that score and encode, on photographs."""

import io
import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from proof_measure import merged, seconds_of, synchronize
from proof_record import Record, Values
from proof_setup import GUIDANCE_SCALE, Setup, Size, make_setup

from refadgen.config import ModelConfig, SamplingConfig
from refadgen.engine import denoiser as denoiser_module
from refadgen.engine.denoiser import AdDenoiser
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import Event, Failed, Finished, StepEngine
from refadgen.generation.scores import score_fidelity
from refadgen.model import unets
from refadgen.model.denoising import DenoisingRow

_PICTURES = Path(__file__).resolve().parents[2] / "catalogs" / "images"
_POOL_THREADS = 4
ImageU8 = npt.NDArray[np.uint8]


def run_engine(record: Record, size: Size, device: torch.device, dtype_name: str, *, compiled: bool) -> None:
    """Eager first; then with the compiled step, where compiling is asked for."""
    setup = make_setup(size, device, getattr(torch, dtype_name))
    batch, count = (8, 32) if size == "full" else (2, 3)
    record.run("engine/eager", lambda: _compare(setup, batch, count))
    if not compiled:
        record.skipped("engine/compiled", "--workers 0: nothing is compiled")
        return
    record.run("engine/compiled", lambda: _compare(setup, batch, count, graphs=False), needs_s=60 * (size == "full"))
    record.run("engine/graphs", lambda: _compare(setup, batch, count, graphs=True), needs_s=60 * (size == "full"))


def _compare(setup: Setup, batch: int, count: int, *, graphs: bool | None = None) -> Values:
    """Images a second of the bare loop and of the engine, and the card's busy share while the engine runs.

    graphs: None: eager; else whether the compiled step is captured.
    """
    pipeline = setup.pipeline
    pipeline._predict = unets.predict
    if graphs is not None and setup.device.type == "cuda":
        torch._dynamo.reset()
        pipeline.optimize(compile=True, cuda_graphs=graphs)
    try:
        # The bare loop runs between two of the engine, so that a card that warms up favours neither.
        started = time.monotonic()
        orders = list(itertools.islice(_orders(setup), count))
        with _engine(setup, batch) as engine:
            _make(engine, orders[:batch])  # compiles
            warm_s = time.monotonic() - started
            first = seconds_of(lambda: _make(engine, orders), setup.device)
            bare_s = _bare(setup, orders, batch)
            second = seconds_of(lambda: _make(engine, orders), setup.device)
            busy, wall_s = _busy_share(lambda: _make(engine, orders), setup.device)
    finally:
        pipeline._predict = unets.predict
    engine_s = min(first, second)
    return {
        "engine_images_s": round(count / engine_s, 3),
        "bare_images_s": round(count / bare_s, 3),
        "engine_over_bare": round(bare_s / engine_s, 4),
        "busy_share": None if busy is None else round(busy, 4),
        "profiled_images_s": round(count / wall_s, 3),
        "warm_up_s": round(warm_s, 1),
        "batch": batch,
        "images": count,
    }


def _orders(setup: Setup) -> Iterator[AdOrder]:
    """Endless orders: the example catalog's photographs in turn, placed on white, four scenes of each."""
    height, width = setup.mask.shape
    pictures = [path for path in sorted(_PICTURES.iterdir()) if "mask" not in path.name]
    for number in itertools.count():
        path = pictures[number // 4 % len(pictures)]
        canvas, mask = _placed(path, height, width)
        yield AdOrder(
            canvas=canvas,
            mask=mask,
            product_key=path.name,
            prompt="abcd"[number % 4],
            negative_prompt=None,
            seed=number,
            fusion_scale=1.0,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=setup.num_steps,
        )


def _placed(path: Path, height: int, width: int) -> tuple[ImageU8, ImageU8]:
    """A photograph scaled into the middle of a white canvas, and what is not white in it."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((width * 3 // 4, height * 3 // 4))
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    pixels: ImageU8 = np.asarray(canvas).copy()
    mask: ImageU8 = np.where(pixels.min(axis=-1) < 240, 255, 0).astype(np.uint8)
    return pixels, mask


@contextmanager
def _engine(setup: Setup, batch: int) -> Iterator[StepEngine[Any, Any, Any]]:
    """The engine on the ready pipeline: nothing is written to a folder and loaded from it."""
    with mock.patch.object(denoiser_module, "load_for_inference", return_value=setup.pipeline):
        denoiser = AdDenoiser(
            ModelConfig(),
            SamplingConfig(batch_size=batch, reference_in_uncond=True),
            reference_cache_bytes=4 * 10**9,
            gpu_expected=setup.device.type == "cuda",
        )
    step = denoiser.step

    def step_in_thread(rows: list[DenoisingRow], batch_size: int) -> list[DenoisingRow]:
        _allow_graphs_in_this_thread()
        return step(rows, batch_size)

    denoiser.step = step_in_thread  # type: ignore[method-assign]
    engine: StepEngine[Any, Any, Any] = StepEngine(denoiser, max_waiting=10_000)
    try:
        yield engine
    finally:
        engine.stop()


def _allow_graphs_in_this_thread() -> None:
    """Gives the thread the state that CUDA graphs of `torch.compile` need.

    torch 2.11 only gives it to the main thread and to autograd's, and refuses others with an AssertionError; 2.14
    gives it to all.
    """
    for name, empty in (("tree_manager_containers", dict), ("tree_manager_locks", _locks)):
        if not torch._C._is_key_in_tls(name):
            torch._C._stash_obj_in_tls(name, empty())


def _locks() -> defaultdict[int, Any]:
    return defaultdict(threading.Lock)


def _make(engine: StepEngine[Any, Any, Any], orders: list[AdOrder]) -> int:
    """Makes, scores and encodes all orders. Returns the bytes of the JPEGs. Raises: the first order's error."""
    made: queue.Queue[tuple[AdOrder, Any]] = queue.Queue()

    def listen(order: AdOrder, event: Event[Any]) -> None:
        if isinstance(event, Finished | Failed):
            made.put((order, event))

    for order in orders:
        engine.submit(order, order.shape, lambda event, order=order: listen(order, event))  # type: ignore[misc]
    encoded: list[Future[int]] = []
    with ThreadPoolExecutor(_POOL_THREADS) as pool:
        for _ in orders:
            order, event = made.get(timeout=300)
            if isinstance(event, Failed):
                raise event.error
            encoded.append(pool.submit(_finish, event.result, order))
    return sum(future.result() for future in encoded)


def _finish(image_u8: ImageU8, order: AdOrder) -> int:
    """Scores and encodes one image, as the job's pools do. Returns the JPEG's bytes."""
    score_fidelity(image_u8, order.canvas, order.mask)
    sink = io.BytesIO()
    Image.fromarray(image_u8).save(sink, "JPEG", quality=92)
    return sink.tell()


def _bare(setup: Setup, orders: list[AdOrder], batch: int) -> float:
    """Seconds of the denoising and decoding alone, features ready, batch after batch."""
    pipeline = setup.pipeline
    keys = {order.product_key: order for order in orders}
    references = {key: pipeline.encode_reference([order.canvas]) for key, order in keys.items()}
    prompts = {prompt: pipeline.encode_prompt(prompt) for prompt in {order.prompt for order in orders}}

    def run() -> None:
        for start in range(0, len(orders), batch):
            rows = [
                pipeline.start(
                    references[order.product_key],
                    order.mask,
                    prompts[order.prompt],
                    seed=order.seed,
                    guidance_scale=order.guidance_scale,
                    num_inference_steps=order.num_inference_steps,
                )
                for order in orders[start : start + batch]
            ]
            for _ in pipeline.denoise(rows, batch_size=batch, reference_in_uncond=True):
                pass
            pipeline.decode(rows)

    return seconds_of(run, setup.device)


def _busy_share(call: Any, device: torch.device) -> tuple[float | None, float]:
    """The share of the call's time in which a kernel or a copy ran, and its seconds; None without a card."""
    if device.type != "cuda":
        return None, seconds_of(call, device)
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        wall_s = seconds_of(call, device)
    events = profiler.profiler.kineto_results.events()
    on_device = [event for event in events if event.device_type() == DeviceType.CUDA]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in on_device)
    busy_ns, _ = merged(spans)
    return busy_ns / 1e9 / wall_s, wall_s
