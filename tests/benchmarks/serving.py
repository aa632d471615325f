"""The endpoint's speed and robustness, all variants in one run.

    python tests/benchmarks/serving.py [--seconds 8] [--parts batching stand_in mini] [--root BEFORE --root .]

batching: step-level batching, request-level batching and no batching, on a stand-in model whose step takes a + b·batch.
    Poisson arrivals at several loads: latencies, and the largest load whose 95th percentile stays within a limit.
stand_in: the endpoint on Ray Serve with the same stand-in: overhead over the bare model; result-cache hits, against an
    empty application on Ray Serve; memory over 2,000 requests, with full caches; five times the load it can bear; a
    replica killed under load.
mini: the endpoint with `mini`: one image against the bare pipeline; eight at once against eight in turn.

The last line is JSON.
"""

import argparse
import asyncio
import concurrent.futures
import dataclasses
import inspect
import io
import json
import multiprocessing
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import ray
import urllib3
from fastapi import FastAPI, Request
from PIL import Image, ImageDraw
from ray import serve
from stand_in import BATCH, STEPS, StandInDenoiser

from refadgen.config import ServeConfig
from refadgen.engine.step_engine import Event, Progress, StepEngine
from refadgen.generation.model_settings import ModelIdentity
from refadgen.serving.app import assemble, build
from refadgen.serving.deployments import AdGeneration

A_S, B_S = 0.004, 0.0005
"""A step of the stand-in takes A_S + B_S · rows. Batches are padded to BATCH, like the model's."""
ALONE_S = STEPS * (A_S + B_S * BATCH)
SLOWER = 5.0
"""Factor of the overloaded stand-in, so that Ray Serve's HTTP on two cores can bear five times its capacity."""
PORT = 8931
URL = f"http://127.0.0.1:{PORT}"


def stand_in(batch_size: int = BATCH, slower: float = 1.0) -> StandInDenoiser:
    """The stand-in device of this benchmark. slower: factor of its time."""
    return StandInDenoiser(slower * (A_S + B_S * batch_size), batch_size)


class DoorEngine:
    """Request-level batching: takes up to a batch of waiting orders and runs it to its end before it takes more."""

    def __init__(self, denoiser: StandInDenoiser) -> None:
        self._denoiser = denoiser
        self._waiting: queue.Queue[tuple[int, Callable[[Any], None]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, order: int, shape: str, listener: Callable[[Any], None]) -> None:
        self._waiting.put((order, listener))

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._denoiser.batch_size and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    return
                batch.append(following)
            rows = [self._denoiser.start(order) for order, _ in batch]
            listeners = {id(row): listener for row, (_, listener) in zip(rows, batch, strict=True)}
            while rows:  # a batch lasts as long as its longest row; finished rows leave it
                done = self._denoiser.step(rows, self._denoiser.batch_size)
                rows = [row for row in rows if row not in done]
                for row in done:
                    listeners[id(row)](None)


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, 100 * share))


@dataclass(frozen=True)
class Load:
    """One policy under one load."""

    per_s: float
    p50_s: float
    p95_s: float


def under_load(make: Callable[[], Any], per_s: float, seconds: float, steps: tuple[int, ...]) -> Load:
    """Poisson arrivals for `seconds`, the same for every policy. Latencies are from arrival to image."""
    engine, rng = make(), random.Random(f"{per_s}-{seconds}")
    latencies: list[float] = []
    pending = threading.Semaphore(0)
    count, started, at = 0, time.monotonic(), 0.0

    def listener(arrived: float) -> Callable[[Event], None]:
        def heard(event: Event) -> None:
            if not isinstance(event, Progress):
                latencies.append(time.monotonic() - arrived)
                pending.release()

        return heard

    while at < seconds:
        at += rng.expovariate(per_s)
        time.sleep(max(0.0, started + at - time.monotonic()))
        engine.submit(rng.choice(steps), "one", listener(started + at))
        count += 1
    for _ in range(count):
        pending.acquire()
    engine.stop()
    return Load(per_s, percentile(latencies, 0.5), percentile(latencies, 0.95))


def goodput(loads: list[Load], limit_s: float) -> float:
    """The largest load whose p95 is within `limit_s`, linearly interpolated between loads; 0: none is."""
    best = 0.0
    for load, following in zip(loads, [*loads[1:], None], strict=True):
        if load.p95_s > limit_s:
            break
        best = load.per_s
        if following is not None and following.p95_s > limit_s:
            share = (limit_s - load.p95_s) / (following.p95_s - load.p95_s)
            best += share * (following.per_s - load.per_s)
    return best


def measure_batching(seconds: float) -> dict[str, Any]:
    policies: dict[str, Callable[[], Any]] = {
        "step": lambda: StepEngine(stand_in(), max_waiting=10**6),
        "door": lambda: DoorEngine(stand_in()),
        "none": lambda: DoorEngine(stand_in(1)),
    }
    most = BATCH / ALONE_S  # images/s of a batch that is always full
    shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    found: dict[str, Any] = {"alone_s": ALONE_S, "most_per_s": most}
    for name, steps in (("20_steps", (STEPS,)), ("10_20_30_steps", (10, 20, 30))):
        loads: dict[str, list[Load]] = {policy: [] for policy in policies}
        for share in shares:
            for policy, make in policies.items():
                earlier = loads[policy]
                if earlier and earlier[-1].p95_s > 8 * ALONE_S:
                    continue  # overrun already
                earlier.append(under_load(make, share * most, seconds, steps))
                last = earlier[-1]
                print(
                    f"{name} {share:.2f} of capacity, {policy:4}: p50 {last.p50_s:.3f} s, p95 {last.p95_s:.3f} s",
                    flush=True,
                )
        limits = {f"{factor}x": factor * ALONE_S * max(steps) / STEPS for factor in (2, 3)}
        rows = {
            label: {policy: round(goodput(measured, limit), 2) for policy, measured in loads.items()}
            for label, limit in limits.items()
        }
        found[name] = {
            "goodput_at_p95": rows,
            "step_over_door": {
                label: round(row["step"] / row["door"], 2) if row["door"] else None for label, row in rows.items()
            },
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


# The endpoint.


class StandInGeneration(AdGeneration):
    def _make_denoiser(self, config: ServeConfig) -> StandInDenoiser:
        return stand_in()


class SlowStandInGeneration(AdGeneration):
    def _make_denoiser(self, config: ServeConfig) -> StandInDenoiser:
        return stand_in(slower=SLOWER)


def product() -> bytes:
    image = Image.new("RGB", (600, 600), "white")
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((180, 90, 420, 540), 40, fill=(30, 80, 160))
    draw.rectangle((180, 260, 420, 380), fill=(230, 200, 40))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=92)
    return sink.getvalue()


PRODUCT = product()


def ask(http: urllib3.PoolManager, **fields: Any) -> tuple[int, float, dict[str, Any]]:
    """Status, seconds and answer of one request."""
    parts = {"image": ("p.jpg", PRODUCT), "prompt": "a bottle on grass", **{k: str(v) for k, v in fields.items()}}
    started = time.monotonic()
    answer = http.request("POST", f"{URL}/v1/ads", fields=parts, timeout=120, retries=False)
    return answer.status, time.monotonic() - started, json.loads(answer.data)


_empty = FastAPI()


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(_empty)
class Empty:
    """Ray Serve's own time for a request and an answer of this size."""

    @_empty.post("/v1/ads")
    async def answer(self, request: Request) -> dict[str, str]:
        await request.body()
        return {"images": "x" * 7000}


def hits_ms(http: urllib3.PoolManager, count: int = 1000) -> dict[str, float]:
    """Times of one repeated request."""
    took = [ask(http, seed=100)[1] for _ in range(count + 100)][100:]
    return {name: round(1e3 * percentile(took, share), 1) for name, share in (("p50", 0.5), ("p99", 0.99))}


def replicas(name: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or []).startswith(f"ray::ServeReplica:bench:{name}")
    ]


def start(app: serve.Application) -> None:
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(app, name="bench")


def measure_stand_in() -> dict[str, Any]:
    config = ServeConfig()
    config = dataclasses.replace(
        config,
        sampling=dataclasses.replace(config.sampling, width_px=128, height_px=160, guidance_scale=2.0),
        limits=dataclasses.replace(config.limits, max_queued_images=16, result_cache_bytes=10_000_000),
    )
    http = urllib3.PoolManager(maxsize=256)
    found: dict[str, Any] = {}
    start(Empty.bind())
    found["empty_application_ms"] = hits_ms(http)
    serve.delete("bench")
    start(assemble(config, ModelIdentity(fingerprint="stand-in", label="stand-in"), StandInGeneration))
    ask(http, seed=0)

    # Overhead: the bare model takes 20 steps; the rest is HTTP, Ray Serve, scoring, encoding.
    bare = [bare_stand_in_s() for _ in range(100)]
    alone = [ask(http, seed=100 + n)[1] for n in range(200)]
    found["overhead_ms"] = {
        name: round(1e3 * (percentile(alone, share) - percentile(bare, share)), 1)
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    found["cache_hit_ms"] = hits_ms(http)

    # Memory: every request is a new image, and the result cache is full before the first reading.
    memory = []
    for part in range(4):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: ask(http, seed=10_000 + n, num_inference_steps=2), range(500 * part, 500 * part + 500)
                )
            )
        names = ("AdIngress", "ProductSegmentation", "AdGeneration")
        memory.append({n: round(sum(p.memory_info().rss for p in replicas(n)) / 1e6, 1) for n in names})
    found["memory_mb_at_500_1000_1500_2000"] = memory

    found["killed_replica"] = killed_replica(http)
    serve.delete("bench")
    start(assemble(config, ModelIdentity(fingerprint="stand-in", label="stand-in"), SlowStandInGeneration))
    found["overload"] = overload(http)
    serve.delete("bench")
    return found


def bare_stand_in_s() -> float:
    model, started = stand_in(), time.monotonic()
    row = model.start(STEPS)
    while not model.step([row], model.batch_size):
        pass
    return time.monotonic() - started


def overload(http: urllib3.PoolManager, seconds: float = 30.0) -> dict[str, Any]:
    """Five times the stand-in's capacity for `seconds`, then one more request immediately."""
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, fresh
    ) as pool:  # a client process of its own, so that its clock is not delayed
        most_per_s = BATCH / (SLOWER * ALONE_S)
        lasted, answers = pool.submit(ask_at_rate, 5 * most_per_s, seconds).result()
    served = [took for status, took, _ in answers if status == 200]
    refused = [took for status, took, _ in answers if status == 429]
    status, after_s, _ = ask(http, seed=99_999)
    return {
        "asked_per_s": round(len(answers) / lasted, 1),
        "asked_over_capacity": round(len(answers) / lasted / most_per_s, 2),
        "statuses": {status: sum(s == status for s, _, _ in answers) for status in sorted({s for s, _, _ in answers})},
        "served_valid": all(valid for status, _, valid in answers if status == 200),
        "served_per_s": round(len(served) / lasted, 1),
        "served_p50_s": round(percentile(served, 0.5), 3),
        "served_p99_s": round(percentile(served, 0.99), 3),
        "refused_p99_s": round(percentile(refused, 0.99), 3),
        "alone_afterwards": {"status": status, "s": round(after_s, 3)},
    }


def ask_at_rate(per_s: float, seconds: float) -> tuple[float, list[tuple[int, float, bool]]]:
    """Poisson arrivals, open loop. Returns their duration; status, seconds and validity of each answer."""
    rng = random.Random(1)

    async def one(session: aiohttp.ClientSession, seed: int) -> tuple[int, float, bool]:
        form = aiohttp.FormData({"prompt": "a bottle on grass", "seed": str(seed)})
        form.add_field("image", PRODUCT, filename="p.jpg")
        started = time.monotonic()
        async with session.post(f"{URL}/v1/ads", data=form) as answer:
            body = await answer.read()
        valid = answer.status == 200 and json.loads(body)["images"][0]["status"] == "done"
        return answer.status, time.monotonic() - started, valid

    async def all_of_them() -> tuple[float, list[tuple[int, float, bool]]]:
        asked, started, at = [], time.monotonic(), 0.0
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)
        ) as session:
            while at < seconds:
                at += rng.expovariate(per_s)
                await asyncio.sleep(max(0.0, started + at - time.monotonic()))
                asked.append(asyncio.create_task(one(session, 50_000 + len(asked))))
            lasted = time.monotonic() - started
            return lasted, await asyncio.gather(*asked)

    return asyncio.run(all_of_them())


def killed_replica(http: urllib3.PoolManager) -> dict[str, Any]:
    """Eight clients send without pause; the only generation replica is killed."""
    stop, answers = threading.Event(), []

    def client(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            status, _, body = ask(http, seed=200_000 + 1000 * number + count)
            answers.append((time.monotonic(), status, body.get("error", {}).get("code")))
            if status != 200:
                time.sleep(0.05)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(client, number)
        time.sleep(5)
        killed_at = time.monotonic()
        os.kill(replicas("AdGeneration")[0].pid, signal.SIGKILL)
        while not any(status == 200 and at > killed_at + 0.5 for at, status, _ in answers):
            time.sleep(0.05)
        full_after = next(at for at, status, _ in answers if status == 200 and at > killed_at + 0.5) - killed_at
        time.sleep(5)
        stop.set()
    codes = [f"{status} {code}" for at, status, code in answers if status != 200]
    return {
        "in_the_replica": 8,
        "failed": {code: codes.count(code) for code in sorted(set(codes))},
        "full_strength_after_s": round(full_after, 1),
    }


def measure_mini() -> dict[str, Any]:
    import torch

    from refadgen.engine.denoiser import AdDenoiser, AdOrder

    torch.set_num_threads(1)
    canvas = np.full((160, 128, 3), 255, np.uint8)
    canvas[40:140, 40:90] = (30, 80, 160)
    mask = np.where(canvas[..., 0] < 255, 255, 0).astype(np.uint8)
    config = ServeConfig()
    cache_bytes = config.limits.reference_cache_bytes
    denoiser = AdDenoiser(config.model, config.sampling, reference_cache_bytes=cache_bytes, gpu_expected=False)

    size = [denoiser.batch_size] * ("batch_size" in inspect.signature(denoiser.step).parameters)  # not of older builds

    def bare(seed: int) -> float:
        started = time.monotonic()
        order = AdOrder(
            canvas=canvas,
            mask=mask,
            product_key="bench",
            prompt="a bottle on grass",
            negative_prompt=None,
            seed=seed,
            fusion_scale=1.0,
            guidance_scale=2.0,
            num_inference_steps=STEPS,
        )
        row = denoiser.start(order)
        while not denoiser.step([row], *size):
            pass
        denoiser.finish(order, row)
        return time.monotonic() - started

    start(build({"output": {"format": "png"}}))
    http = urllib3.PoolManager(maxsize=16)
    ask(http, seed=0)
    bare(0)
    turns = [
        (bare(n), ask(http, seed=n)[1]) for n in range(1, 21)
    ]  # alternating, so that the machine's load affects both alike
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        list(pool.map(lambda n: ask(http, seed=500 + n), range(8)))
        together = time.monotonic() - started
    one = statistics.median(took for _, took in turns)
    serve.delete("bench")
    return {
        "bare_s": round(statistics.median(took for took, _ in turns), 3),
        "endpoint_s": round(one, 3),
        "overhead_ms_p50": round(1e3 * statistics.median(second - first for first, second in turns), 1),
        "overhead_ms_p99": round(1e3 * percentile([second - first for first, second in turns], 0.99), 1),
        "eight_at_once_over_one_by_one": round(8 * one / together, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of arrivals at each load")
    parser.add_argument("--parts", nargs="+", default=["batching", "stand_in", "mini"])
    parser.add_argument("--root", type=Path, action="append", help="checkouts to measure in turn; default: this one")
    arguments = parser.parse_args()
    if arguments.root:
        words = ["--seconds", str(arguments.seconds), "--parts", *arguments.parts]
        compare([root.resolve() for root in arguments.root], words)
        return
    found: dict[str, Any] = {}
    if "batching" in arguments.parts:
        found["batching"] = measure_batching(arguments.seconds)
    if {"stand_in", "mini"} & set(arguments.parts):
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="WARNING")
        for part, measure in (("stand_in", measure_stand_in), ("mini", measure_mini)):
            if part in arguments.parts:
                found[part] = measure()
                print(f"{part}: {json.dumps(found[part])}", flush=True)
        serve.shutdown()
    print(json.dumps(found))


def compare(roots: list[Path], words: list[str]) -> None:
    """Measures each checkout in a process of its own, one after the other."""
    found: dict[str, dict[str, Any]] = {}
    for root in roots:
        env = os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent}"}
        ran = subprocess.run(
            [sys.executable, __file__, *words], env=env, cwd=root, text=True, stdout=subprocess.PIPE, check=True
        )
        print(f"== {root}\n{ran.stdout}", end="", flush=True)
        found[str(root)] = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
