"""Grafana's dashboard and Prometheus's alerts, made from the metrics that the code exports.

    python cluster/dashboards.py        # writes cluster/grafana/dashboard.json and alerts.yaml

Each metric has its panel, so a new one in the code gets one by running this again; `lint.py` refuses files that differ.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
"""What Ray's exporter puts behind a metric's name, by kind."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as the code makes it."""

    kind: str
    """Counter, Gauge or Histogram."""
    name: str
    """As Prometheus sees it, with Ray's `ray_` but without a suffix."""
    text: str
    tags: tuple[str, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its series."""
        return tuple(self.name + suffix for suffix in SUFFIXES[self.kind])


def metrics_of(project: Path) -> list[Metric]:
    """The metrics that `refadgen/` and `jobs/` make, by name."""
    found = [metric for folder in ("refadgen", "jobs") for metric in _metrics_below(project / folder)]
    return sorted(found, key=lambda metric: metric.name)


def _metrics_below(folder: Path) -> Iterator[Metric]:
    for path in folder.rglob("*.py"):
        source = path.read_text()
        if "ray.util.metrics" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and isinstance(called, ast.Name) and called.id in SUFFIXES and node.args:
                name, text = (ast.literal_eval(argument) for argument in node.args[:2])
                tags = next((word.value for word in node.keywords if word.arg == "tag_keys"), None)
                keys = ast.literal_eval(tags) if tags else ()
                yield Metric(kind=called.id, name=f"ray_{name}", text=text, tags=tuple(keys))


_AS_RATES = ("_seconds", "_cost")
"""Ends of counters that do not count events."""

_JOB_IMAGES = "sum by (entry) (rate(ray_refadgen_job_images_total[5m]))"
_TOGETHER = [
    (
        "seconds an image of each stage",
        "Mean time that a stage spends on an image; those of a stage's actors run beside each other.",
        "s",
        f"sum by (entry, stage) (rate(ray_refadgen_job_stage_seconds_total[5m])) / on (entry) group_left {_JOB_IMAGES}",
        "{{entry}} {{stage}}",
    ),
    (
        "device busy share",
        "Share of their time that generating actors spend in denoising steps.",
        "percentunit",
        "sum(rate(ray_refadgen_job_device_busy_seconds_total[5m])) "
        '/ sum(ray_refadgen_job_actors{pool="AdGenerator"} > 0)',
        "all",
    ),
    (
        "cost an image",
        "Of the GPUs that jobs hold, at cost.per_gpu_hour.",
        "short",
        f"sum by (entry) (rate(ray_refadgen_job_cost_total[5m])) / on (entry) {_JOB_IMAGES}",
        "{{entry}}",
    ),
]
"""Panels of several metrics: title, description, unit, expression, legend."""


def dashboard(metrics: list[Metric]) -> dict[str, Any]:
    """A dashboard with a panel for each metric, and for what several of them tell together, two in a row."""
    contents = [
        (metric.name.removeprefix("ray_refadgen_").replace("_", " "), metric.text, _unit(metric), _targets(metric))
        for metric in metrics
    ]
    contents += [
        (title, text, unit, [{"refId": "A", "expr": expression, "legendFormat": legend}])
        for title, text, unit, expression, legend in _TOGETHER
    ]
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": title,
            "description": text,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": targets,
        }
        for number, (title, text, unit, targets) in enumerate(contents)
    ]
    return {
        "title": "RefAdGen",
        "uid": "refadgen",
        "tags": ["refadgen"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _unit(metric: Metric) -> str:
    if metric.kind == "Counter":
        return "short" if metric.name.endswith(_AS_RATES) else "ops"
    return "s" if metric.name.endswith("_seconds") else "short"


def _targets(metric: Metric) -> list[dict[str, str]]:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in metric.tags)
    if metric.kind == "Histogram":
        by = ", ".join(("le", *metric.tags))
        return [
            {
                "refId": letter,
                "expr": f"histogram_quantile({share}, sum by ({by}) (rate({metric.name}_bucket[5m])))",
                "legendFormat": f"p{100 * share:g} {legend}".strip(),
            }
            for letter, share in (("A", 0.5), ("B", 0.95))
        ]
    by = f" by ({', '.join(metric.tags)})" if metric.tags else ""
    value = f"rate({metric.name}_total[5m])" if metric.kind == "Counter" else metric.name
    return [{"refId": "A", "expr": f"sum{by} ({value})", "legendFormat": legend or "all"}]


def alerts() -> dict[str, Any]:
    """What somebody must be woken for, or should look at. Bounds are a start: set your own."""
    requests = "ray_refadgen_requests_total"
    images = "ray_refadgen_images_total"
    seconds = "ray_refadgen_request_seconds_bucket"
    job_images = "ray_refadgen_job_images_total"
    rules = [
        _alert(
            "RefAdGenRequestsFail",
            f'sum(rate({requests}{{status=~"5.."}}[5m])) / sum(rate({requests}[5m])) > 0.05',
            "critical",
            "More than 5 % of requests are answered with 5xx.",
        ),
        _alert(
            "RefAdGenImagesFail",
            f'sum(rate({images}{{status="failed"}}[15m])) / sum(rate({images}[15m])) > 0.2',
            "warning",
            "More than a fifth of the images fail.",
        ),
        _alert(
            "RefAdGenIsFull",
            f'sum(rate({requests}{{status="429"}}[5m])) / sum(rate({requests}[5m])) > 0.1',
            "warning",
            "More than a tenth of requests are turned away: raise deployments.generation.max_replicas.",
        ),
        _alert(
            "RefAdGenIsSlow",
            f'histogram_quantile(0.95, sum by (le) (rate({seconds}{{route="/v1/ads"}}[10m]))) > 60',
            "warning",
            "One in twenty ads takes longer than a minute.",
        ),
        _alert(
            "RefAdGenJobImagesFail",
            f'sum by (entry) (rate({job_images}{{status="failed"}}[15m])) '
            f"/ on (entry) sum by (entry) (rate({job_images}[15m])) > 0.2",
            "warning",
            "More than a fifth of a job's images fail: python jobs/status.py OUTPUT says why.",
        ),
        _alert(
            "RefAdGenJobStandsStill",
            "sum by (entry) (ray_refadgen_job_actors) > 0 "
            f"unless on (entry) sum by (entry) (rate({job_images}[30m])) > 0",
            "critical",
            "A job holds actors, and has recorded no image for half an hour.",
        ),
        _alert(
            "RefAdGenWorkersDie",
            f'sum by (entry) (increase({job_images}{{reason="killed_worker"}}[1h])) > 3',
            "warning",
            "More than three products killed their process within an hour: python jobs/status.py OUTPUT counts them.",
        ),
        _alert(
            "RefAdGenTrainingStandsStill",
            "max(ray_refadgen_train_steps_left) > 0 unless sum(rate(ray_refadgen_train_samples_total[30m])) > 0",
            "critical",
            "A training has steps left, and has made none for half an hour.",
        ),
    ]
    return {"groups": [{"name": "refadgen", "rules": rules}]}


def _alert(name: str, expression: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": "10m",
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def unknown_names(expression: str, metrics: list[Metric]) -> list[str]:
    """Series and tags in a PromQL expression that the code does not export."""
    series = {name: metric for metric in metrics for name in metric.series}
    named = re.findall(r"ray_\w+", expression)
    unknown = [name for name in named if name not in series]
    tags = {"le"} | {tag for name in named if name in series for tag in series[name].tags}
    by = [word.strip() for words in re.findall(r"by \(([^)]*)\)", expression) for word in words.split(",")]
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    return unknown + [tag for tag in [*by, *matched] if tag not in tags]


def texts(project: Path) -> dict[str, str]:
    """The content of each file in `grafana/`."""
    rules = yaml.safe_dump(alerts(), sort_keys=False, width=120)
    return {
        "dashboard.json": json.dumps(dashboard(metrics_of(project)), indent=1, ensure_ascii=False) + "\n",
        "alerts.yaml": f"# Made by cluster/dashboards.py.\n{rules}",
    }


if __name__ == "__main__":
    for name, text in texts(HERE.parent).items():
        (HERE / "grafana" / name).write_text(text)
