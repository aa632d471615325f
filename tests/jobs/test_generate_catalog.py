"""The main job on a real local Ray: what it makes, what it skips, and what a crash costs."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import job_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refadgen.generation.encoding import SOURCE_TYPES
from refadgen.provenance.record import read_record

pytestmark = pytest.mark.slow
NUM_IMAGES = 24


def test_every_wanted_image_is_there_with_its_ledger_row(whole_run: Path) -> None:
    rows = job_runs.latest(whole_run)
    assert len(rows) == NUM_IMAGES
    assert {row["status"] for row in rows.values()} == {"done"}
    assert {whole_run / row["uri"] for row in rows.values()} == set((whole_run / "images").rglob("*.jpg"))
    for row in rows.values():
        assert (whole_run / row["product_uri"]).exists()
        assert 0 <= row["color_similarity"] <= 1
        assert 0 <= row["structure_similarity"] <= 1
        assert 0 <= row["local_similarity"] <= 1
        assert 0 <= row["hue_similarity"] <= 1
    assert {row["mask_source"] for row in rows.values()} == {"plain_background", "alpha", "own_mask"}
    assert (whole_run / "report.html").stat().st_size > 10_000
    facts = job_runs.facts(whole_run)
    assert facts["counts"] == {"done": NUM_IMAGES, "failed": 0, "rejected": 0, "skipped": 0}


def test_an_image_says_what_it_is_and_how_it_was_made(whole_run: Path) -> None:
    row = next(iter(job_runs.latest(whole_run).values()))
    data = (whole_run / row["uri"]).read_bytes()
    assert f"{SOURCE_TYPES}trainedAlgorithmicMedia".encode() in data
    record = read_record(data)
    assert {name: record[name] for name in ("image_id", "sku", "prompt", "seed")} == {
        name: row[name] for name in ("image_id", "sku", "prompt", "seed")
    }
    with Image.open(whole_run / row["uri"]) as image:
        assert image.size == (row["width_px"], row["height_px"])


def test_the_same_command_again_does_nothing(whole_run: Path, random_model: Path, shared_ray: None) -> None:
    before = job_runs.ledger_rows(whole_run)
    again = job_runs.run_here(job_runs.CATALOG, whole_run, random_model, *job_runs.QUICK)
    assert again.returncode == 0
    assert f"skipped {NUM_IMAGES}" in again.stdout
    assert len(job_runs.ledger_rows(whole_run)) == len(before)


def test_the_same_products_in_a_feed_are_the_same_images(
    whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    products = [row for row in pq.read_table(job_runs.CATALOG).to_pylist() if len(row["prompt"] or []) < 2]
    lines = [
        "\t".join((value if isinstance(value, str) else "".join(value or [])) for value in row.values())
        for row in products
    ]
    feed = tmp_path / "feed.tsv"
    feed.write_text("\n".join(["\t".join(products[0]), *lines]) + "\n")
    before = len(job_runs.ledger_rows(whole_run))
    again = job_runs.run_here(feed, whole_run, random_model, *job_runs.QUICK)
    assert again.stdout.startswith(f"{feed}: read as table of text, separated by tabs, UTF-8\n")
    wanted = [row for row in job_runs.latest(whole_run).values() if row["sku"] in {row["sku"] for row in products}]
    assert f"done 0, failed 0, rejected 0, skipped {len(wanted)} " in again.stdout
    assert len(job_runs.ledger_rows(whole_run)) == before

    # And made from the feed, they are the same too; pictures lie beside the feed.
    (tmp_path / "images").symlink_to(job_runs.CATALOG.parent / "images")
    words = [*job_runs.QUICK, "--limit", "1", f"fetch.file_roots=[{job_runs.CATALOG.parent}]"]
    words.append("output.public_url=https://cdn.example/{uri}")
    assert "done 2" in job_runs.run_here(feed, tmp_path / "out", random_model, *words).stdout
    assert job_runs.images(tmp_path / "out").items() <= job_runs.images(whole_run).items()
    assert job_runs.facts(tmp_path / "out")["feed"]["products"] == 1
    assert list((tmp_path / "out" / "feed").iterdir()) == []
    told = (tmp_path / "out" / "channels" / "merchant.tsv").read_text().splitlines()
    assert told[0] == "id\tlifestyle_image_link"
    assert [line.partition("\thttps://cdn.example/images/")[0] for line in told[1:]] == [products[0]["sku"]]


def test_channels_get_files_and_feeds_and_a_rerun_makes_nothing_twice(
    random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    words = [*job_runs.QUICK, "catalog.scenes_per_product=1", "output.public_url=https://cdn.example/{uri}"]
    words += ["channels=[merchant, pmax-landscape, pmax-square]", "--limit", "1"]
    first = job_runs.run_here(job_runs.CATALOG, tmp_path, random_model, *words)
    assert first.stdout.count("done 2, failed 0, rejected 0, skipped 0") == 1, first.stderr
    rows = job_runs.ledger_rows(tmp_path)
    assert sorted((row["ratio"], row["lint"], len(row["channel_files"])) for row in rows) == [
        ("1.91:1", "clean", 1),
        ("1:1", "clean", 2),
    ]
    files = {file["uri"] for row in rows for file in row["channel_files"]}
    assert {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "channels").rglob("*.jpg")} == files
    with (tmp_path / "channels" / "google-ads.csv").open(newline="") as file:
        assets = list(csv.DictReader(file))
    assert [(row["id"], row["field_type"]) for row in assets] == [
        ("DEMO-001", "MARKETING_IMAGE"),
        ("DEMO-001", "SQUARE_MARKETING_IMAGE"),
    ]
    assert {row["image_url"].removeprefix("https://cdn.example/") for row in assets} <= files
    before = {file: file.read_bytes() for file in (tmp_path / "channels").rglob("*.*")}
    again = job_runs.run_here(job_runs.CATALOG, tmp_path, random_model, *words)
    assert again.stdout.count("done 0, failed 0, rejected 0, skipped 2") == 1, again.stderr
    assert {file: file.read_bytes() for file in (tmp_path / "channels").rglob("*.*")} == before


def test_a_fault_in_a_stage_is_logged_once_with_its_row_and_the_job_goes_on(random_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "images").touch()  # a file where the images' folder should be
    finished = job_runs.run(job_runs.CATALOG, output, random_model, *job_runs.QUICK, "--limit", "2")
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = job_runs.ledger_rows(output)
    assert [(row["status"], row["reason"]) for row in rows] == 4 * [("failed", "publish_failed")]
    assert all("FileExistsError" in row["detail"] or "NotADirectoryError" in row["detail"] for row in rows)
    log = finished.stdout + finished.stderr
    assert log.count("AdPublisher failed: run") == 1
    head, _, traceback = log.partition("AdPublisher failed: run")[2].partition("Traceback (most recent call last)")
    assert job_runs.facts(output)["run_id"] in head
    assert any(f"row {row['row']}, sku '{row['sku']}'" in head for row in rows)
    assert "in _publish" in traceback


def test_a_changed_product_image_is_found_when_inputs_are_checked(
    random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    table = pq.read_table(job_runs.CATALOG).slice(0, 2)
    pq.write_table(table, tmp_path / "two.parquet")
    (tmp_path / "images").mkdir()
    for name in table["image"].to_pylist():
        (tmp_path / name).write_bytes((job_runs.CATALOG.parent / name).read_bytes())

    def run(*more: str) -> str:
        finished = job_runs.run_here(tmp_path / "two.parquet", tmp_path / "out", random_model, *job_runs.QUICK, *more)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    assert "done 4" in run()
    before = job_runs.latest(tmp_path / "out")
    first, second = table["image"].to_pylist()
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    assert "skipped 4" in run()  # an address is all that an image_id knows
    assert "done 2, failed 0, rejected 0, skipped 2" in run("--check-inputs")
    after = job_runs.latest(tmp_path / "out")
    assert after.keys() == before.keys()
    changed = {row["sku"] for image_id, row in after.items() if row != before[image_id]}
    assert changed == {table["sku"].to_pylist()[1]}


@pytest.mark.long
def test_a_run_after_a_review_uses_the_decisions(random_model: Path, tmp_path: Path) -> None:
    output, words = tmp_path / "out", ["--limit", "3", "segmentation.max_area=0.02", *job_runs.QUICK]

    def run(*more: str) -> str:
        finished = job_runs.run(job_runs.CATALOG, output, random_model, *words, *more)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    assert f"3 doubtful masks: decide in {output}/review.html" in run()
    masks = json.loads((output / "review.html").read_text().split('id="data">')[1].split("</script")[0])
    shared = ("sku", "input_sha256", "photo_width_px", "photo_height_px", "mask_width_px", "mask_height_px")
    entries = [{name: mask[name] for name in shared} for mask in masks["masks"]]
    for entry, mask, decision in zip(entries, masks["masks"], ("accept", "paint", "refuse"), strict=True):
        entry |= {"decision": decision, "mask_png": mask["mask"].partition(",")[2]}
    file = tmp_path / "decisions.json"
    file.write_text(
        json.dumps({name: masks[name] for name in ("format", "version", "catalog")} | {"decisions": entries})
    )

    told = run("--review", str(file))
    assert "done 4, failed 0, rejected 0, skipped 2" in told
    assert "6 images of earlier runs refused or replaced by review" in told
    assert "doubtful masks" not in told
    rows = job_runs.latest(output).values()
    found = {entry["sku"]: [(r["status"], r["reason"]) for r in rows if r["sku"] == entry["sku"]] for entry in entries}
    used = sorted(2 * [("done", ""), ("rejected", "replaced_by_review")])
    assert [sorted(each) for each in found.values()] == [used, used, 2 * [("rejected", "refused_by_review")]]
    assert {row["mask_source"] for row in rows if row["status"] == "done"} == {"review"}
    assert "done 0, failed 0, rejected 0, skipped 6" in run("--review", str(file))


@pytest.mark.long  # half-way and with the same checks, but on S3: test_s3.py
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_killed_driver_costs_only_the_batches_in_flight(
    share: float, whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = job_runs.start(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    job_runs.wait_until(lambda: len(list((output / "images").rglob("*.jpg"))) >= share * NUM_IMAGES, process)
    job_runs.kill_all(process)
    first = {row["image_id"] for row in job_runs.ledger_rows(output)}
    published = {Path(name).stem for name in job_runs.images(output)}
    assert first <= published  # an image is there before its row
    assert first
    again = job_runs.run_here(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    assert again.returncode == 0, again.stderr[-3000:]
    assert job_runs.images(output) == job_runs.images(whole_run)
    assert job_runs.latest(output) == job_runs.latest(whole_run)
    assert job_runs.done_twice(output) == []
    # Blocks of one product (two images): one in the publisher, one on its way to the driver, one in its ledger buffer.
    assert len(published - first) <= 6
    assert f"skipped {len(first)}" in again.stdout


def test_order_company_and_number_of_actors_do_not_change_a_byte(
    whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    table = pq.read_table(job_runs.CATALOG)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "images").symlink_to(job_runs.CATALOG.parent / "images")
    pq.write_table(table.take(pa.array([7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4])), folder / "shuffled.parquet")
    pq.write_table(table.slice(4, 1), folder / "alone.parquet")
    expected = job_runs.images(whole_run)
    roots = f"fetch.file_roots=[{job_runs.CATALOG.parent}]"
    two = ("stages.generate.num_actors=2", "stages.generate.num_cpus=0.5")
    words = (random_model, *job_runs.QUICK, roots)
    shuffled = job_runs.run_here(folder / "shuffled.parquet", tmp_path / "out-shuffled", *words, *two)
    alone = job_runs.run_here(folder / "alone.parquet", tmp_path / "out-alone", *words)
    assert (shuffled.returncode, alone.returncode) == (0, 0), shuffled.stderr[-3000:] + alone.stderr[-3000:]
    assert job_runs.images(tmp_path / "out-shuffled") == expected
    found = job_runs.images(tmp_path / "out-alone")
    assert len(found) == 2
    assert found.items() <= expected.items()


@pytest.mark.long
def test_gpus_are_counted_by_ray(random_model: Path, tmp_path: Path) -> None:
    """A Ray started with pretended GPUs schedules actors by `num_gpus`; asking for more than there are is an error."""
    script = tmp_path / "gpus.py"
    script.write_text(
        "import json, sys, ray\n"
        "from jobs.generate_catalog import main\n"
        "ray.init(address='local', num_cpus=4, num_gpus=2, include_dashboard=False)\n"
        "sys.exit(main(json.loads(sys.argv[1])))\n"
    )
    words = [str(job_runs.CATALOG), "--model", str(random_model), "--limit", "2", *job_runs.QUICK, "model.device=cpu"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [job_runs.sys.executable, str(script), json.dumps([*words, *more])],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=job_runs.PROJECT,
            env={**os.environ, "PYTHONPATH": str(job_runs.PROJECT)},
            check=False,
        )

    fits = run("--output", str(tmp_path / "fits"), "stages.generate.num_gpus=1", "stages.generate.num_actors=2")
    assert fits.returncode == 0, fits.stderr[-3000:]
    assert len(job_runs.images(tmp_path / "fits")) == 4
    too_many = run("--output", str(tmp_path / "many"), "stages.generate.num_gpus=2", "stages.generate.num_actors=2")
    assert too_many.returncode == 2
    assert "4 GPUs, Ray has 2" in too_many.stderr


def test_a_dry_run_tells_and_makes_nothing(random_model: Path, shared_ray: None, tmp_path: Path) -> None:
    told = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", random_model, "--dry-run", "--limit", "5")
    assert told.returncode == 0, told.stderr[-3000:]
    assert "images wanted: 10, to make: 10, skipped (reconciled): 0" in told.stdout
    assert "nouns of rows, from the category 4; the most frequent:" in told.stdout
    assert "num_inference_steps: 20" in told.stdout
    assert re.search(r"actors on this Ray: fetch 1.*, segment 1.*, generate \d+, publish 1", told.stdout)
    assert "num_actors=auto: one generating actor a GPU" in told.stdout
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampling.stepz=3"], "unknown setting sampling.stepz; did you mean sampling."),
        (["sampling.fusion_scale=-1"], "sampling.fusion_scale=-1"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["catalog.scenes_per_product=99"], "catalog.scenes_per_product=99"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["sampling.width_px=100"], "sampling.width_px=100: must be a multiple of 8"),
        (["model.path=./nowhere"], "model.path='./nowhere': there is no such folder"),
    ],
)
def test_a_wrong_setting_stops_the_job_before_it_starts(
    words: list[str], message: str, random_model: Path, tmp_path: Path
) -> None:
    stopped = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", random_model, *words)
    assert stopped.returncode == 2
    assert message in stopped.stderr


@pytest.mark.parametrize("job", ["generate_catalog", "build_dataset", "train"])
def test_a_wrong_setting_ends_the_process_with_2(job: str) -> None:
    words = [job_runs.sys.executable, f"jobs/{job}.py", *(["in"] if job != "train" else []), "colour.red=1"]
    stopped = subprocess.run(words, capture_output=True, text=True, cwd=job_runs.PROJECT, check=False)
    assert stopped.returncode == 2
    assert stopped.stderr.startswith(f"{job}: unknown setting colour")
    assert stopped.stderr.count("\n") == 1


def test_an_empty_catalogue_is_done_at_once(random_model: Path, shared_ray: None, tmp_path: Path) -> None:
    catalog = tmp_path / "c.parquet"
    pq.write_table(pa.table({"sku": pa.array([], pa.string()), "image": pa.array([], pa.string())}), catalog)
    ended = job_runs.run_here(catalog, tmp_path / "out", random_model)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "done 0, failed 0, rejected 0, skipped 0" in ended.stdout
    assert (tmp_path / "out" / "report.html").exists()
