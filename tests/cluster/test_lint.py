"""`make cluster-lint` passes on what ships; it refuses a wrong field, command, setting or metric in any file."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def load_lint() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint", CLUSTER / "lint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lint = load_lint()
FILES = [path.relative_to(CLUSTER).as_posix() for path in lint.Linter(CLUSTER).files()]
JOB, TRAINING, SERVICE = (
    "kuberay/catalog/rayjob.yaml",
    "kuberay/training/rayjob.yaml",
    "kuberay/endpoint/rayservice.yaml",
)
OVERLAY, RULES, DASHBOARD = (
    "kuberay/overlays/catalog/kustomization.yaml",
    "grafana/alerts.yaml",
    "grafana/dashboard.json",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CLUSTER, tmp_path / "cluster"))


def problems(folder: Path, file: str, old: str, new: str) -> str:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return "\n".join(lint.Linter(folder).check(path))


@pytest.mark.parametrize("file", FILES)
def test_what_ships_is_right(file: str) -> None:
    assert lint.Linter(CLUSTER).check(CLUSTER / file) == []


def test_every_file_is_looked_at() -> None:
    beside = {"dashboards.py", "lint.py", "schema.yaml", "Dockerfile.dockerignore"}
    ours = {path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file()}
    left = {name for name in ours - set(FILES) - beside if not name.startswith(("local/", "__pycache__"))}
    assert left == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (JOB, "backoffLimit: 5", "backofLimit: 5", "backofLimit"),
        (JOB, "backoffLimit: 5", "backoffLimit: many", "spec.backoffLimit: 'many'"),
        (JOB, "submissionMode: SidecarMode", "submissionMode: K8sJobMode", "spec.submissionMode"),
        (JOB, "mode: token", "mode: disabled", "authOptions.mode"),
        (JOB, "jobStatus: FAILED", "jobStatus: BROKEN", "jobStatus"),
        (JOB, "policy: DeleteCluster", "policy: DeleteWorkers", "does not go with enableInTreeAutoscaling"),
        (JOB, "runAsNonRoot: true", "runAsNotRoot: true", "head: spec.securityContext"),
        (JOB, "nvidia.com/gpu\n", "nvidia.com/gpu\n                effects: x\n", "gpu-spot: spec.tolerations.0"),
        (JOB, 'rayVersion: "2.', 'rayVersion: "1.', "is not the one in constraints.txt"),
        (JOB, "jobs/generate_catalog.py", "jobs/generate_catalogue.py", "is none of jobs/generate_catalog.py"),
        (JOB, "--model", "--modell", "--modell"),
        (JOB, "stages.generate.num_gpus=1", "stages.generate.num_gpu=1", "did you mean stages.generate.num_gpus?"),
        (JOB, "stages.generate.num_gpus=1", "stages.generate.num_gpus=-1", "must be 0 or more"),
        (JOB, "/models/refadgen", "/model/refadgen", "/model/refadgen: lies in no volume"),
        (JOB, 'prometheus.io/port: "8080"', 'prometheus.io/port: "8081"', "is not the port `metrics`"),
        (TRAINING, "run.min_workers=1", "run.min_workers=4", "run.min_workers=4"),
        (TRAINING, "--config paper", "--config papper", "no preset of that name"),
        (TRAINING, "groupName: gpu-spot", "groupName: gpu-spot\n        priority: 1", "need enableInTreeAutoscaling"),
        (SERVICE, "stepSizePercent: 10", "stepSizePercent: 60", "must not exceed maxSurgePercent"),
        (SERVICE, "gatewayClassName", "gatewayClass", "gatewayClass"),
        (SERVICE, "num_gpus: 1", "num_gpu: 1", "unknown setting deployments.generation.num_gpu"),
        (SERVICE, "import_path: refadgen.serving.app:build", "import_path: refadgen.serving.app:make", "import_path"),
        (SERVICE, "route_prefix: /", "route_prefix: v1", "route_prefix"),
        (SERVICE, "proxy_location", "proxy_place", "proxy_place"),
        (SERVICE, "path: /readyz", "path: /ready", "the endpoint has no route /ready"),
        (SERVICE, "port: serve", "port: http", "there is no port http"),
        ("kuberay/endpoint/poddisruptionbudget.yaml", "minAvailable: 1", "minAvailble: 1", "minAvailble"),
        ("kuberay/account/serviceaccount.yaml", "metadata:", "metadatas:", "metadatas"),
        ("kuberay/account/serviceaccount.yaml", "kind: ServiceAccount", "kind: ServicesAccount", "ServicesAccount"),
        ("kuberay/catalog/kustomization.yaml", "resources:", "resource:", "resource"),
        (OVERLAY, "newTag: 0.1.0", "tag: 0.1.0", "images.0"),
        (OVERLAY, "op: add", "op: append", "patches.0.patch"),
        ("launcher/aws.yaml", "ssh_user", "ssh_usr", "auth: "),
        ("launcher/aws.yaml", "max_workers: 16", "max_worker: 16", "gpu_spot"),
        ("launcher/aws.yaml", "max_workers: 28", "max_workers: 20", "less than the node types ask for"),
        ("launcher/gcp.yaml", "head_node_type: head", "head_node_type: heads", "heads is none of"),
        ("launcher/gcp.yaml", "auth_token:", "token:", "nodes have no token"),
        ("local/serve.yaml", "min_replicas", "min_replica", "min_replica"),
        (RULES, "severity: critical", "severity: bad", "labels.severity"),
        (RULES, "  for: 10m", "  four: 10m", "four"),
        (
            RULES,
            "refadgen_requests_total{",
            "refadgen_request_total{",
            "ray_refadgen_request_total: the code exports no",
        ),
        (RULES, 'route="', 'path="', "path: the code exports no"),
        (DASHBOARD, '"targets"', '"target"', "target"),
        (DASHBOARD, "by (cache, hit)", "by (cache, hits)", "hits: the code exports no"),
        (DASHBOARD, '"title": "RefAdGen"', '"title": "Other"', "differs from what"),
        ("Dockerfile", "USER 1000", "USER root", "target cpu: runs as root"),
        ("Dockerfile", "COPY jobs", "COPY job", "COPY job: not there"),
        ("Dockerfile", "--constraint constraints.txt ", "", "installs without constraints.txt"),
        ("Dockerfile", "WORKDIR", "WORKDIRS", "WORKDIRS"),
        ("README.md", "stages.generate.num_gpus=1", "stages.generate.gpus=1", "unknown setting stages.generate.gpus"),
    ],
)
def test_a_planted_fault_is_refused(copy: Path, file: str, old: str, new: str, said: str) -> None:
    assert said in problems(copy, file, old, new)


def test_a_patch_of_a_place_that_is_not_there_is_refused(copy: Path) -> None:
    if not (shutil.which("kustomize") or shutil.which("kubectl")):
        pytest.skip("neither kustomize nor kubectl is there")
    assert "entry" in problems(copy, OVERLAY, "/spec/entrypoint", "/specs/entry")
    problems(copy, OVERLAY, "/specs/entry", "/spec/entrypoint")
    said = problems(copy, OVERLAY, "catalog.num_variants=2", "catalog.variants=2")
    assert "as built: RayJob: jobs/generate_catalog.py: unknown setting catalog.variants" in said


def test_what_was_skipped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint.shutil, "which", lambda name: None)
    said = "\n".join(lint.Linter(CLUSTER).skipped)
    assert all(word in said for word in ("CRDS=FOLDER", "kubectl", "promtool"))


def test_definitions_of_kuberay_are_used_where_they_are_given(copy: Path, tmp_path: Path) -> None:
    """A definition that knows no backoffLimit: the manifest that has one is refused."""
    known = ("entrypoint", "submissionMode", "preRunningDeadlineSeconds", "deletionStrategy", "rayClusterSpec")
    spec = {"type": "object", "properties": {name: {} for name in known}}
    root = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec}
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": root}}}
    crd = {"spec": {"names": {"kind": "RayJob"}, "versions": [version]}}
    folder = tmp_path / "crds"
    folder.mkdir()
    (folder / "rayjobs.yaml").write_text(yaml.safe_dump(crd))
    linter = lint.Linter(copy, folder)
    (found,) = linter.check(copy / JOB)
    assert re.match(r"KubeRay's definition: spec: .*'backoffLimit' was unexpected", found)
    with pytest.raises(SystemExit, match=r"no \.yaml files"):
        lint.Linter(copy, copy / "local" / "none")


def test_every_metric_of_the_code_has_a_panel_and_no_panel_is_dead() -> None:
    metrics = lint.dashboards.metrics_of(ROOT)
    needed = {"requests", "step_seconds", "job_images", "job_queue_blocks", "job_device_busy_seconds", "job_cost"}
    assert {f"ray_refadgen_{name}" for name in needed} <= {metric.name for metric in metrics}
    panels = lint.dashboards.dashboard(metrics)["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    for metric in metrics:
        assert any(series in expression for series in metric.series for expression in expressions), metric.name
    assert [lint.dashboards.unknown_names(expression, metrics) for expression in expressions] == [[]] * len(expressions)


@pytest.mark.parametrize(
    ("name", "file", "package"),
    [
        ("RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S", JOB, "ray/autoscaler/v2/instance_manager/config.py"),
        ("RAY_AUTH_MODE", "Dockerfile", "ray/_private/authentication/authentication_token_setup.py"),
        ("RAY_USAGE_STATS_ENABLED", "Dockerfile", "ray/_common/usage/usage_constants.py"),
        ("HF_HUB_OFFLINE", "Dockerfile", "huggingface_hub/constants.py"),
    ],
)
def test_variables_of_the_environment_are_read_by_somebody(name: str, file: str, package: str) -> None:
    spec = importlib.util.find_spec(package.partition("/")[0])
    assert spec is not None
    assert spec.origin is not None
    assert name in (CLUSTER / file).read_text()
    assert name in (Path(spec.origin).parents[1] / package).read_text()


def test_the_program_ends_with_1_where_a_file_is_wrong(copy: Path) -> None:
    (copy / "launcher" / "gcp.yaml").write_text("cluster_name: x\n")
    for file in FILES:  # the others are checked above
        if file != "launcher/gcp.yaml":
            (copy / file).unlink() if file not in ("Dockerfile", "README.md") else None
    command = [sys.executable, copy / "lint.py"]
    for name in ("constraints.txt", "jobs", "refadgen"):
        (copy.parent / name).symlink_to(ROOT / name)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1, ended.stderr
    assert "WRONG cluster/launcher/gcp.yaml\n    file: 'provider' is a required property" in ended.stdout
