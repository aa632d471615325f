"""`import_checkpoint.py --from-hub` against a hub of our own: found by ids, weighed, fetched, resumed, verified."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, HubServer, files_of
from test_authors_checkpoint import make_module, write_file
from tiny_models import make_image_encoder, make_vae, run, start, states, write_base

from refadgen.model import RefAdGenPipeline, hub
from refadgen.model.authors_hub import COMPONENTS

PROJECT = Path(__file__).parents[2]
JOB = PROJECT / "jobs" / "import_checkpoint.py"
CHECKPOINT = "checkpoint-900/mp_rank_00_model_states.pt"
ENCODER = "models/image_encoder/model.safetensors"
TOKEN = "hf_" + "SECRET" * 5


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """What the authors, and those whose parts they use, have on the hub; at tiny width, with files nobody needs."""
    root = tmp_path_factory.mktemp("published")
    for repository in ("yiyun123/RefAdgen/checkpoint-900", "h94/IP-Adapter/sdxl_models/image_encoder"):
        (root / repository).mkdir(parents=True)
    write_file(root / "yiyun123" / "RefAdgen" / CHECKPOINT, make_module())
    base = write_base(root / "SG161222" / "Realistic_Vision_V5.1_noVAE")
    (base / "Realistic_Vision_V5.1.safetensors").write_bytes(b"once more, as a single file" * 9999)
    make_vae(seed=31).save_pretrained(root / "stabilityai" / "sd-vae-ft-mse")
    encoders = root / "h94" / "IP-Adapter"
    make_image_encoder(seed=32).save_pretrained(encoders / "models" / "image_encoder")
    (encoders / "sdxl_models" / "image_encoder" / "model.safetensors").write_bytes(b"another" * 9999)
    for repository in root.glob("*/*"):
        (repository / "README.md").write_text("a card")
    return root


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    """The hub, and a cache of its own for this process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    running = HubServer({f"{folder.parent.name}/{folder.name}": files_of(folder) for folder in published.glob("*/*")})
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_WAIT_S", 0.01)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield running
    running.shutdown()
    running.server_close()
    close_session()


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location("import_checkpoint_from_hub", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(job, tmp_path, capsys):
    """refused(*words): the error of the job, in one line and without the token."""

    def call(*words: str) -> str:
        assert job.main(["--from-hub", "--output", str(tmp_path / "model"), *words]) == 2
        told = capsys.readouterr()
        assert TOKEN not in told.err + told.out
        assert not (tmp_path / "model").exists()
        *_, line = told.err.strip().splitlines()  # after huggingface_hub's bars
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


def test_one_command_finds_fetches_and_converts(job, server, published, tmp_path, capsys):
    assert job.main(["--from-hub", "--output", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    for name, place in COMPONENTS.items():
        assert any(line.startswith(name) and place in line and COMMIT[:12] in line for line in shown.splitlines())
    parts = ["--base", "SG161222/Realistic_Vision_V5.1_noVAE", "--vae", "stabilityai/sd-vae-ft-mse"]
    parts += ["--image-encoder", "h94/IP-Adapter/models/image_encoder"]
    given = [str(published / word) if "/" in word else word for word in parts]
    file = published / "yiyun123" / "RefAdgen" / CHECKPOINT
    assert job.main([str(file), *given, "--output", str(tmp_path / "by-hand")]) == 0
    found, expected = (RefAdGenPipeline.from_pretrained(tmp_path / name) for name in ("model", "by-hand"))
    assert states(found).keys() == states(expected).keys()
    assert all(torch.equal(tensor, states(expected)[name]) for name, tensor in states(found).items())
    fetched = {path for method, path, _ in server.requests if method == "GET" and "/resolve/" in path}
    assert not [path for path in fetched if path.endswith((".md", "V5.1.safetensors")) or "sdxl" in path]
    assert not [path for path in fetched if "/unet/" in path and not path.endswith("config.json")]
    assert f"Bearer {TOKEN}" in server.tokens


def test_a_dry_run_shows_sizes_and_fetches_nothing(job, server, published, tmp_path, capsys):
    assert job.main(["--from-hub", "--dry-run", "--output", str(tmp_path / "new" / "model")]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    size = (published / "yiyun123" / "RefAdgen" / CHECKPOINT).stat().st_size
    assert " ".join(rows["checkpoint"][3:5]) == hub.size_text(size)
    assert list(rows) == ["component", *COMPONENTS, "total"]
    assert not [path for _, path, _ in server.requests if "/resolve/" in path]
    assert not (tmp_path / "new").exists()


def test_a_connection_that_breaks_is_resumed_where_it_broke(job, server, tmp_path):
    server.cut = {CHECKPOINT: [100_000, 50_000]}
    assert job.main(["--from-hub", "--output", str(tmp_path / "model")]) == 0
    assert server.ranges(CHECKPOINT) == ["", "bytes=100000-", "bytes=150000-"]


def test_the_same_command_resumes_what_an_earlier_one_left(job, server, tmp_path, refused, capsys):
    """In mid-file, and without what was complete."""
    server.cut = {ENCODER: [7000, 0, 0, 0, 0, 0]}
    assert "image_encoder='h94/IP-Adapter': " in (told := refused())
    assert "run the same command again: what was fetched is kept" in told
    assert len(server.ranges(ENCODER)) == 6
    server.requests.clear()
    assert job.main(["--from-hub", "--output", str(tmp_path / "model")]) == 0
    assert server.ranges(ENCODER) == ["bytes=7000-"]
    assert server.ranges(CHECKPOINT) == []
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "here already" in rows["checkpoint"]
    RefAdGenPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("path", [CHECKPOINT, "text_encoder/config.json"])
@pytest.mark.parametrize("change", ["longer", "shorter", "changed"])
def test_other_bytes_than_the_hub_lists_are_refused_by_name(job, server, refused, tmp_path, path, change):
    (listed,) = (files[path] for files in server.repositories.values() if path in files)
    other = {"longer": listed + b" ", "shorter": listed[:-1], "changed": listed[:-1] + b"\x07"}
    server.other = {path: other[change]}
    told = refused()
    assert f": {path}: " in told
    assert "that the hub lists" in told
    server.other = {}
    assert job.main(["--from-hub", "--output", str(tmp_path / "model")]) == 0  # nothing bad was kept


def test_who_may_not_download_is_told_what_to_do(server, refused):
    server.closed = {"yiyun123/RefAdgen": (403, "GatedRepo")}
    assert "checkpoint='yiyun123/RefAdgen': its owner asks for consent first" in refused()
    server.closed = {"yiyun123/RefAdgen": (401, "GatedRepo")}
    assert "`hf auth login`, or set HF_TOKEN" in refused()
    server.closed = {"h94/IP-Adapter": (401, "RepoNotFound")}
    assert "no model of that name, or it is private (status 401)" in refused()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--vae", "nobody/nothing"], "vae='nobody/nothing': .* no model of that name"),
        (["--vae", "stabilityai/sd-vae-ft-mse@v9"], "has no such revision"),
        (["--vae", "h94/IP-Adapter"], "vae='h94/IP-Adapter': no weights and configuration of the vae there; it has "),
        (["--vae", "/gone"], "vae='/gone': no such path, and not of the form owner/name"),
        (["--image-encoder", "h94/IP-Adapter/gone"], "image_encoder there below gone; it has "),
        (["stabilityai/sd-vae-ft-mse"], "no mp_rank_00_model_states.pt there; it has README.md, config.json"),
    ],
)
def test_an_id_that_leads_nowhere_is_named(server, refused, words, named):
    assert re.search(named, refused(*words))
    assert not [path for _, path, _ in server.requests if "/resolve/" in path]


def test_ids_take_revisions_folders_and_paths(job, server, published, tmp_path, capsys):
    server.revisions["v1"] = COMMIT
    words = [f"yiyun123/RefAdgen/{CHECKPOINT}@v1", "--vae", str(published / "stabilityai" / "sd-vae-ft-mse")]
    words += ["--image-encoder", "h94/IP-Adapter@main"]
    assert job.main(["--from-hub", "--dry-run", *words, "--output", str(tmp_path / "model")]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"yiyun123/RefAdgen/{CHECKPOINT}" in rows["checkpoint"]
    assert str(published) in rows["vae"]
    assert not [path for _, path, _ in server.requests if "sd-vae" in path]


def test_a_full_disk_is_told_before_anything_is_fetched(server, refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    assert "are needed there and 1 kB are free: set HF_HOME and --output" in refused()
    assert not [path for _, path, _ in server.requests if "/resolve/" in path]


def test_a_hub_that_is_away_or_forbidden_is_an_error_in_words(server, refused, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", away)
        assert f"{away} does not answer, or stopped to (ConnectError)" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()


def test_nothing_is_fetched_without_the_word(job, server, tmp_path, capsys):
    for words in ([], ["--base", "SG161222/Realistic_Vision_V5.1_noVAE"], ["file.pt", "--dry-run"]):
        with pytest.raises(SystemExit) as ended:
            job.main([*words, "--output", str(tmp_path / "model")])
        assert ended.value.code == 2
        assert "--from-hub" in capsys.readouterr().err
    assert not server.requests


@pytest.mark.slow
def test_the_command_line_follows_the_environment(server, tmp_path):
    """As users run it: HF_ENDPOINT, HF_HOME, HF_TOKEN; killed in mid-file, and started again."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
    }
    environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(JOB), "--from-hub", "--output", str(tmp_path / "model")]
    server.hold = {CHECKPOINT: 200_000}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert server.held.wait(60)
        parts = tmp_path / "home" / "hub" / "models--yiyun123--RefAdgen" / "blobs"
        while sum(part.stat().st_size for part in parts.glob("*.part")) < 200_000:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    server.release()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (_, resumed) = server.ranges(CHECKPOINT)
    assert resumed == "bytes=200000-"
    pipeline = RefAdGenPipeline.from_pretrained(tmp_path / "model")
    pipeline.register_to_config(prompt_suffix=", hq", negative_prompt="ugly")
    assert run(pipeline, [start(pipeline, 1, "a cup", num_inference_steps=2)])[0].isfinite().all()
