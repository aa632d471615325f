"""Pools of actors on a real local Ray: one grows with its work; an actor that ends its own process is bounded."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.data._internal.logical.optimizers import get_execution_plan

from refadgen.batch import actor_pools, ray_connection
from refadgen.batch.actor_pools import nodes_of_ray, num_cpus, require_resources, restart_actor, with_stage
from refadgen.batch.death_marks import DeathMarks
from refadgen.batch.ledger import LedgerWriter
from refadgen.batch.pool_sizes import NodeSize, PoolSize
from refadgen.batch.run_record import record_rows
from refadgen.config import GenerateConfig, load_config
from refadgen.config.sections import StageConfig

NUM_ROWS = 12
ONE = PoolSize(1, 1)


class Recorded(LedgerWriter):
    """Keeps the rows in memory."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.counts, self.reasons = {}, {}  # type: ignore[assignment]

    def add(self, table: pa.Table) -> None:
        self.rows += table["n"].to_pylist()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray_connection.connect(4)
    yield
    ray.shutdown()


def numbered(count: int) -> pa.Table:
    """Rows as a ledger has them, as far as a run looks at them; `error` as between stages."""
    kind = pa.struct([(name, pa.string()) for name in ("status", "reason", "detail")])
    columns = {"n": list(range(count)), "status": ["done"] * count, "reason": [""] * count}
    return pa.table(columns | {"error": pa.nulls(count, kind)})


def marks(folder: Path, most_starts: int = 12) -> DeathMarks:
    return DeathMarks(output_uri=str(folder / "out"), folder="marks/all", key="n", most_starts=most_starts)


def rows_through(
    stage: type, size: PoolSize, marks: DeathMarks, calls_at_once: int = 1, num_rows: int = NUM_ROWS
) -> list[int]:
    rows = ray.data.from_arrow(numbered(num_rows)).repartition(num_rows)
    writer = Recorded()
    stream = with_stage(rows, stage, StageConfig(), size, 1, marks, calls_at_once=calls_at_once)
    record_rows(stream, writer, total=num_rows, unit="row", job="test", run_id="r1")
    return writer.rows


@pytest.mark.slow
def test_a_device_that_is_always_lost_ends_the_run_with_a_clear_error(local_ray: None, tmp_path: Path) -> None:
    """Whatever row it works on: then it is not the rows."""

    class Stage:
        def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
            if table["error"].null_count:
                restart_actor(RuntimeError("the device is lost"))
            yield table

    with pytest.raises(RuntimeError, match="ended 3 times in a row, and no row was done; it last worked on n "):
        rows_through(Stage, ONE, marks(tmp_path, most_starts=3), calls_at_once=3)


@pytest.mark.slow
@pytest.mark.parametrize("kills_itself", [False, True])
def test_an_actor_that_cannot_start_again_ends_the_run(kills_itself: bool, local_ray: None, tmp_path: Path) -> None:
    class Stage:
        def __init__(self) -> None:
            if (tmp_path / "lost").exists() and kills_itself:
                os._exit(1)
            if (tmp_path / "lost").exists():
                raise ValueError("PyTorch sees no GPU")

        def __call__(self, table: pa.Table) -> pa.Table:
            (tmp_path / "lost").touch()
            restart_actor(RuntimeError("the device is lost"))

    with pytest.raises(RuntimeError, match="could not start again") as raised:
        rows_through(Stage, ONE, marks(tmp_path, most_starts=2))
    assert kills_itself or "PyTorch sees no GPU" in str(raised.value)


@pytest.mark.slow
def test_an_idle_actor_that_cannot_start_again_ends_the_run(local_ray: None, tmp_path: Path) -> None:
    """It had no call in hand by whose failure Ray Data would hear of it."""
    lost, failed = tmp_path / "lost", tmp_path / "failed"

    class Feeder:
        def __call__(self, table: pa.Table) -> pa.Table:
            if table["n"].to_pylist() != [0]:
                while not failed.exists():
                    time.sleep(0.05)
                time.sleep(1)
            return table

    class Stage:
        def __init__(self) -> None:
            if lost.exists():
                failed.touch()
                raise ValueError("PyTorch sees no GPU")

        def __call__(self, table: pa.Table) -> pa.Table:
            threading.Timer(1, self.end).start()
            return table

        def end(self) -> None:
            lost.touch()
            os._exit(1)

    rows = ray.data.from_arrow(numbered(3)).repartition(3)
    fed = with_stage(rows, Feeder, StageConfig(), ONE, 1, marks(tmp_path))
    ended = with_stage(fed, Stage, StageConfig(), ONE, 1, marks(tmp_path))
    with pytest.raises(RuntimeError, match=r"MapBatches\(Stage\).*: an actor ended while it had no work"):
        record_rows(ended, Recorded(), total=3, unit="row", job="test", run_id="r1")


@pytest.mark.slow
def test_pools_of_equal_resources_stay_apart(local_ray: None, tmp_path: Path) -> None:
    """Fused stages would share an actor: no fetching ahead of the device, and a death would be of both."""

    class First:
        def __call__(self, table: pa.Table) -> pa.Table:
            return table

    class Second(First):
        pass

    rows = ray.data.from_arrow(numbered(3)).map_batches(lambda table: table, batch_format="pyarrow")
    for stage in (First, Second):
        rows = with_stage(rows.repartition(target_num_rows_per_block=1), stage, StageConfig(), ONE, 1, marks(tmp_path))
    operator, names = get_execution_plan(rows._logical_plan)[0].dag, []
    while operator.input_dependencies:
        names.append(operator.name)
        (operator,) = operator.input_dependencies
    assert [name for name in names if "First" in name or "Second" in name] == [
        "MapBatches(Second)",
        "MapBatches(First)",
    ]


@pytest.mark.slow
def test_a_pool_grows_while_its_blocks_pile_up(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    class Stage:
        def __call__(self, table: pa.Table) -> pa.Table:
            (seen / str(os.getpid())).touch()
            until = time.monotonic() + 120
            while len(list(seen.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            return table

    assert sorted(rows_through(Stage, PoolSize(1, 2), marks(tmp_path))) == list(range(NUM_ROWS))
    assert len(list(seen.iterdir())) == 2
    assert capsys.readouterr().err.count("Stage: 1 more, for its blocks pile up") == 1


@pytest.mark.slow
def test_a_pool_falls_back_on_the_labels_that_a_node_has(local_ray: None, tmp_path: Path) -> None:
    class Stage:
        def __call__(self, table: pa.Table) -> pa.Table:
            return table

    here = f"ray.io/node-id={ray.nodes()[0]['NodeID']}"
    pool = StageConfig(label_selector=("zone=nowhere", here))
    writer = Recorded()
    stream = with_stage(ray.data.from_arrow(numbered(3)).repartition(3), Stage, pool, ONE, 1, marks(tmp_path))
    record_rows(stream, writer, total=3, unit="row", job="test", run_id="r1")
    assert sorted(writer.rows) == [0, 1, 2]
    stages = load_config(GenerateConfig, None, ["stages.publish.label_selector=zone=nowhere"]).stages
    with pytest.raises(ValueError, match=r"stages\.publish\.label_selector=\['zone=nowhere'\]: no node of this Ray"):
        require_resources(stages, dict.fromkeys(("fetch", "segment", "generate", "publish"), ONE))


@pytest.mark.slow
def test_more_actors_than_the_ray_can_ever_hold_are_refused_in_words(local_ray: None) -> None:
    def check(size: int, *words: str) -> None:
        stages = load_config(GenerateConfig, None, words).stages
        require_resources(stages, dict.fromkeys(("fetch", "segment", "publish"), ONE) | {"generate": PoolSize(size, 9)})

    check(1)
    with pytest.raises(ValueError, match=r"the actors ask for 2 GPUs, Ray has 0; .* \(stages\.\*\.num_actors\)"):
        check(2, "stages.generate.num_gpus=1")
    with pytest.raises(ValueError, match=r"the actors ask for 92\.5 CPUs \(one of them for planning\), Ray has \d"):
        check(90)


@pytest.mark.slow
def test_a_ray_of_one_node_has_no_more_cores_than_its_machine(local_ray: None) -> None:
    assert [node.cpus for node in nodes_of_ray(cores=1)] == [4]
    assert nodes_of_ray(cores=1000)[0].cpus == ray.cluster_resources()["CPU"]


def test_nodes_that_a_ray_may_add_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        def __init__(self, max_count: int, **resources: float) -> None:
            self.max_count, self.resources = max_count, resources

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(actor_pools, "_live_nodes", lambda: [NodeSize(8), NodeSize(16, 1)])
    monkeypatch.setattr(actor_pools, "_node_groups", lambda: [Group(3, CPU=16, GPU=1)])
    assert [node.gpus for node in nodes_of_ray(cores=2)] == [0, 1, 1, 1]
    stages = load_config(GenerateConfig, None, ["stages.generate.num_gpus=1"]).stages
    sizes = dict.fromkeys(("fetch", "segment", "publish"), ONE)
    require_resources(stages, sizes | {"generate": PoolSize(3, 3)})
    with pytest.raises(ValueError, match="ask for 4 GPUs, Ray has 3"):
        require_resources(stages, sizes | {"generate": PoolSize(4, 4)})
    monkeypatch.setattr(actor_pools, "_node_groups", lambda: [Group(-1, CPU=16, GPU=1)])  # any number
    require_resources(stages, sizes | {"generate": PoolSize(40, 40)})


def test_a_node_must_have_both_the_cpus_and_the_gpus_of_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would wait for ever, though the Ray has enough of each."""
    monkeypatch.setattr(actor_pools, "_live_nodes", lambda: [NodeSize(64), NodeSize(4, 1)])
    monkeypatch.setattr(actor_pools, "_node_groups", list)
    sizes = dict.fromkeys(("fetch", "segment", "generate", "publish"), ONE)
    words = ["stages.generate.num_gpus=1", "stages.generate.num_cpus=8"]
    with pytest.raises(ValueError, match=r"stages.generate: an actor asks for num_cpus=8 with num_gpus=1, and no node"):
        require_resources(load_config(GenerateConfig, None, words).stages, sizes)
    require_resources(load_config(GenerateConfig, None, words[:1]).stages, sizes)


def test_a_local_ray_has_room_for_an_actor_on_each_core() -> None:
    assert num_cpus(load_config(GenerateConfig).stages, cores=2) == 5
    assert num_cpus(load_config(GenerateConfig, None, ["stages.generate.num_actors=20"]).stages, cores=2) == 23


def test_outside_an_actor_the_error_itself_comes() -> None:
    with pytest.raises(ValueError, match="lost"):
        restart_actor(ValueError("lost"))
