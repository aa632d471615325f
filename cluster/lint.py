"""Checks every file of `cluster/`, without a cluster: `make cluster-lint`.

    python cluster/lint.py [--crds FOLDER]

Kubernetes objects and pods are held against kubernetes-validate's schemas, Ray's cluster files against that of the
ray package, the rest against `schema.yaml`; with --crds KubeRay's objects also against the definitions in FOLDER.
promtool reads the alerts, Kustomize builds the overlays. Commands, settings, routes, metrics must be the project's.
Prints each problem with its file, and what was skipped for want of a program. Exit code 1 where there is a problem.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

import refadgen.dataset
import refadgen.training
from refadgen.config import DatasetConfig, GenerateConfig, ServeConfig, TrainConfig, load_config
from refadgen.config.loading import build, preset_file

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
KUBERNETES = "1.35"
"""The version of Kubernetes whose schemas are used."""
JOBS = {"generate_catalog": GenerateConfig, "train": TrainConfig, "build_dataset": DatasetConfig}
PRESETS = {"train": refadgen.training, "build_dataset": refadgen.dataset}
INSTRUCTIONS = frozenset({"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ARG"})


def load_script(path: Path) -> ModuleType:
    """A program of the project as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


dashboards = load_script(HERE / "dashboards.py")


class Linter:
    """The schemas, and the checks of each kind of file. A check yields problems as texts."""

    def __init__(self, folder: Path, crds: Path | None = None) -> None:
        """folder: of the files. crds: of KubeRay's own definitions."""
        self.folder = folder
        self.skipped: list[str] = []
        self._crds = dict(_read_crds(crds)) if crds else {}
        if not crds:
            self.skipped.append("KubeRay's own definitions (CRDS=FOLDER): its objects are checked against schema.yaml")
        self._kustomize = next(
            (words for words in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(words[0])), None
        )
        if self._kustomize is None:
            self.skipped.append("overlays as built: neither kustomize nor kubectl is there")
        self._promtool = shutil.which("promtool")
        if self._promtool is None:
            self.skipped.append("the expressions of alerts: no promtool (Debian's package prometheus has it)")
        spec = importlib.util.find_spec("ray")  # found, not imported: that takes seconds
        assert spec is not None
        assert spec.origin is not None
        self._ray_schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())

    def files(self) -> Iterator[Path]:
        """The files that `check` knows."""
        yield self.folder / "Dockerfile"
        yield self.folder / "README.md"
        for pattern in ("kuberay/**/*.yaml", "launcher/*.yaml", "local/*.yaml", "grafana/*"):
            yield from sorted(self.folder.glob(pattern))

    def check(self, path: Path) -> list[str]:
        """The problems of one file."""
        text, kind = path.read_text(), path.relative_to(self.folder).parts[0]
        try:
            match kind:
                case "Dockerfile":
                    return list(_check_dockerfile(text))
                case "README.md":
                    commands = re.findall(r"python jobs/\S+\.py[^\n`#]*", text.replace("\\\n", " "))
                    return [problem for command in commands for problem in check_command(command)]
                case "launcher":
                    return list(self._check_launcher(_documents(text)[0]))
                case "local":
                    return list(check_serve(text))
                case "grafana":
                    return list(self._check_grafana(path, text))
                case _:
                    return [problem for document in _documents(text) for problem in self._check_object(document, path)]
        except yaml.YAMLError as error:
            return [f"not YAML: {error}"]

    def _check_object(self, document: dict[str, Any], path: Path) -> Iterator[str]:
        kind, group = document.get("kind", ""), str(document.get("apiVersion", "")).partition("/")[0]
        if kind == "Kustomization":
            yield from self._check_kustomization(document, path)
        elif group == "ray.io":
            if kind not in ("RayJob", "RayService"):
                yield f"kind: {kind} is not one that schema.yaml knows"
                return
            wrong = _against(kind, document)
            if kind in self._crds:
                wrong += _validate(document, self._crds[kind], "KubeRay's definition: ")
            # Its pods and commands can only be looked at where its fields are right.
            yield from wrong or check_ray_object(document)
        else:
            yield from _check_kubernetes(document)

    def _check_kustomization(self, document: dict[str, Any], path: Path) -> Iterator[str]:
        wrong = _against("Kustomization", document)
        for number, patch in enumerate(document.get("patches", []) if not wrong else []):
            at = f"patches.{number}.patch: "
            wrong += [at + problem for problem in _against("Patch", _documents(patch["patch"])[0])]
        yield from wrong
        if self._kustomize is None or wrong or "patches" not in document:
            return  # where nothing is patched, it has only what the files have
        built = subprocess.run([*self._kustomize, str(path.parent)], capture_output=True, text=True, check=False)
        if built.returncode:
            yield built.stderr.strip()
            return
        for each in _documents(built.stdout):
            yield from (f"as built: {each['kind']}: {problem}" for problem in self._check_object(each, path))

    def _check_launcher(self, document: dict[str, Any]) -> Iterator[str]:
        wrong = _validate(document, self._ray_schema)
        yield from wrong
        if wrong:
            return
        kinds = document["available_node_types"]
        if document.get("head_node_type") not in kinds:
            yield f"head_node_type: {document.get('head_node_type')} is none of available_node_types"
        if sum(kind.get("max_workers", 0) for kind in kinds.values()) > document.get("max_workers", 0):
            yield "max_workers: less than the node types ask for together"
        if "/home/refadgen/.ray/auth_token" not in document.get("file_mounts", {}):
            yield "file_mounts: without /home/refadgen/.ray/auth_token nodes have no token"

    def _check_grafana(self, path: Path, text: str) -> Iterator[str]:
        rules = path.suffix == ".yaml"
        document = _documents(text)[0] if rules else json.loads(text)
        wrong = _against("Rules" if rules else "Dashboard", document)
        yield from wrong
        if wrong:
            return
        if rules:
            expressions = [rule["expr"] for group in document["groups"] for rule in group["rules"]]
        else:
            expressions = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
        metrics = dashboards.metrics_of(PROJECT)
        for expression in expressions:
            for name in dashboards.unknown_names(expression, metrics):
                yield f"{name}: the code exports no such series or tag ({expression})"
        if text != dashboards.texts(PROJECT).get(path.name):
            yield "differs from what `python cluster/dashboards.py` makes"
        if rules and self._promtool:
            done = subprocess.run(
                [self._promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                yield f"promtool: {(done.stdout + done.stderr).strip()}"


def _documents(text: str) -> list[Any]:
    # The parser in C, where it is: the real definitions are megabytes.
    return [each for each in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each is not None]


def closed(schema: Any) -> Any:
    """The schema with every object that lists `properties` closed to others, as the API server sees it."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    done = {name: closed(value) for name, value in schema.items()}
    lists = isinstance(done.get("properties"), dict) and "type" in done
    if lists and not done.get("x-kubernetes-preserve-unknown-fields"):
        done.setdefault("additionalProperties", False)
    return done


def _read_crds(folder: Path) -> Iterator[tuple[str, Any]]:
    """Kinds and schemas of the custom resources in a folder. Raises: SystemExit where there are none."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise SystemExit(f"--crds {folder}: there are no .yaml files in it")
    for document in (each for path in files for each in _documents(path.read_text())):
        for version in document["spec"]["versions"]:
            if version["name"] == "v1":
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                yield document["spec"]["names"]["kind"], schema


def _validate(document: Any, schema: Any, prefix: str = "") -> list[str]:
    errors = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{prefix}{'.'.join(map(str, error.path)) or 'file'}: {error.message[:300]}" for error in errors]


SCHEMA = closed(_documents((HERE / "schema.yaml").read_text())[0])


def _against(name: str, document: Any) -> list[str]:
    return _validate(document, {"definitions": SCHEMA["definitions"], **SCHEMA[name]})


def _check_kubernetes(document: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message


def check_ray_object(document: dict[str, Any]) -> Iterator[str]:
    """A RayJob or RayService whose fields are right: KubeRay's rules between fields, pods, commands."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    groups = cluster["workerGroupSpecs"]
    yield from _rules_of_kuberay(spec, cluster)
    ray = re.search(r"^ray==(\S+)", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    if ray is None or cluster["rayVersion"] != ray[1]:
        yield f"rayVersion: {cluster['rayVersion']} is not the one in constraints.txt"
    templates = {group.get("groupName", "head"): group["template"] for group in (cluster["headGroupSpec"], *groups)}
    wrong = list(_check_pods(templates))
    yield from wrong
    if wrong:
        return
    mounts: list[str] = []
    for name, template in templates.items():
        for container in template["spec"]["containers"]:
            mounts += [f"{mount['mountPath']}/" for mount in container.get("volumeMounts", [])]
            yield from (f"{name}: {problem}" for problem in _check_container(template, container))
    text = spec.get("serveConfigV2") or spec["entrypoint"]
    yield from check_serve(text) if "serveConfigV2" in spec else check_command(text)
    for place in re.findall(r"(?<=[ =])/[a-z][\w./-]*", re.sub(r"route_prefix: \S+", "", text)):
        if not place.startswith(tuple(mounts)):
            yield f"{place}: lies in no volume of the pods"


def _check_pods(templates: dict[str, Any]) -> Iterator[str]:
    """templates: of pods, by the name of their group. Checked at once, since the schemas are large."""
    pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates.values()]
    for problem in _check_kubernetes({"apiVersion": "v1", "kind": "PodList", "items": pods}):
        number, _, rest = problem.removeprefix("items.").partition(".")
        yield f"{list(templates)[int(number)]}: {rest}"


def _rules_of_kuberay(spec: dict[str, Any], cluster: dict[str, Any]) -> Iterator[str]:
    """What its operator refuses although the fields are right."""
    scales = cluster.get("enableInTreeAutoscaling", False)
    for rule in spec.get("deletionStrategy", {}).get("deletionRules", []):
        if scales and rule["policy"] == "DeleteWorkers":
            yield "deletionRules: DeleteWorkers does not go with enableInTreeAutoscaling"
    upgrade = spec.get("upgradeStrategy", {})
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        options = upgrade.get("clusterUpgradeOptions", {})
        if not scales:
            yield "upgradeStrategy: an incremental upgrade needs enableInTreeAutoscaling"
        if options.get("stepSizePercent", 101) > options.get("maxSurgePercent", 100):
            yield "upgradeStrategy: stepSizePercent must not exceed maxSurgePercent"
    for group in cluster["workerGroupSpecs"]:
        if group["minReplicas"] > group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas exceeds maxReplicas"
        if ("priority" in group or "idleTimeoutSeconds" in group) and not scales:
            yield f"{group['groupName']}: priority and idleTimeoutSeconds need enableInTreeAutoscaling"


def _check_container(template: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    """Ports that annotations and probes name, and routes that probes ask for."""
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    scraped = template.get("metadata", {}).get("annotations", {}).get("prometheus.io/port")
    if scraped and int(scraped) != ports.get("metrics"):
        yield f"prometheus.io/port: {scraped} is not the port `metrics`"
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        ask = container.get(name, {}).get("httpGet")
        if ask and ask["port"] not in ports:
            yield f"{name}: there is no port {ask['port']}"
        if ask and f'"{ask["path"]}"' not in (PROJECT / "refadgen/serving/api.py").read_text():
            yield f"{name}: the endpoint has no route {ask['path']}"


def check_command(command: str) -> Iterator[str]:
    """`python jobs/NAME.py …`: the program, its options and its settings."""
    _, program, *words = shlex.split(command)
    name = Path(program).stem
    if name not in JOBS or program != f"jobs/{name}.py":
        yield f"{program}: is none of {', '.join(f'jobs/{each}.py' for each in JOBS)}"
        return
    job, said = load_script(PROJECT / program), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = job.parse_arguments(words)
        file = arguments.config
        if name in PRESETS:
            file = preset_file(file, PRESETS[name])
        load_config(JOBS[name], file, arguments.settings)
    except SystemExit:
        yield f"{program}: {said.getvalue().strip().splitlines()[-1]}"
    except ValueError as error:
        yield f"{program}: {error}"


def check_serve(text: str) -> Iterator[str]:
    """A `serve deploy` file: its fields, the application, and the settings in `args`."""
    document = _documents(text)[0]
    wrong = _against("Serve", document)
    yield from wrong
    if wrong:
        return
    for application in document["applications"]:
        module, _, function = application["import_path"].partition(":")
        path = PROJECT / f"{module.replace('.', '/')}.py"
        if not path.is_file() or f"\ndef {function}(" not in path.read_text():
            yield f"import_path: there is no {application['import_path']}"
        values = {name: value for name, value in application.get("args", {}).items() if name != "config"}
        try:
            build(ServeConfig, values)
        except ValueError as error:
            yield f"args: {error}"


def _check_dockerfile(text: str) -> Iterator[str]:
    """Known instructions; sources that are there; pins; no target that runs as root."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, str] = {}
    stage = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word not in INSTRUCTIONS:
            yield f"{word}: not an instruction that is used here"
        if word == "FROM":
            source, _, stage = rest.split()
            stages[stage] = stages.get(source, "root")
            if source not in stages and not re.fullmatch(r"python:3\.11-slim", source):
                yield f"FROM {source}: neither a stage above nor python:3.11-slim"
        elif word == "USER":
            stages[stage] = rest.strip()
        elif word == "COPY" and "--from=" not in rest:
            yield from (f"COPY {name}: not there" for name in rest.split()[:-1] if not (PROJECT / name).exists())
        elif word == "RUN" and "uv pip install" in rest and "--constraint constraints.txt" not in rest:
            yield f"RUN {rest[:60]}…: installs without constraints.txt"
    for name, user in stages.items():
        if name != "base" and not re.fullmatch(r"[1-9]\d*", user):
            yield f"target {name}: runs as {user}; KubeRay's runAsNonRoot needs a number"


def main() -> int:
    """Checks all files. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the files of cluster/.")
    parser.add_argument("--crds", type=Path, help="folder of KubeRay's CustomResourceDefinitions")
    linter = Linter(HERE, parser.parse_args().crds)
    problems = 0
    for path in linter.files():
        found = linter.check(path)
        problems += len(found)
        print(f"{'ok' if not found else 'WRONG'} {path.relative_to(PROJECT)}")
        for problem in found:
            print(f"    {problem}")
    for what in linter.skipped:
        print(f"skipped: {what}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
