"""The application, as `refadgen.serving.run` serves it.

In a `serve deploy` config, `args` holds the same sections nested (see cluster/local/serve.yaml).
"""

import dataclasses
import json
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from refadgen.config import ServeConfig, dotted, load_config
from refadgen.config.paths import absolute_paths
from refadgen.config.serve import ReplicasConfig
from refadgen.generation.model_settings import ModelIdentity, with_model_settings
from refadgen.serving.deployments import FETCHES, AdGeneration, AdIngress, ProductSegmentation

_MAX_OPEN = 1000
"""Requests that one ingress replica holds open; nearly all of them only wait for an image."""


def build(arguments: dict[str, Any]) -> Application:
    """The application.

    arguments: `config` (a YAML file), and the fields of ServeConfig, nested or dotted.
    Raises: ValueError naming the wrong setting, before anything starts.
    """
    config = configuration(arguments)
    resolved, model = with_model_settings(config.generation())
    return assemble(dataclasses.replace(config, sampling=resolved.sampling), model)


def assemble(config: ServeConfig, model: ModelIdentity, generation: type[AdGeneration] = AdGeneration) -> Application:
    """The deployments, bound to each other.

    config: with the model's recommended settings filled in, and paths as the user wrote them. generation: another
    class, for benchmarks. Raises: ValueError naming the setting of a path that does not exist.
    """
    sampling = config.sampling
    local = absolute_paths(config)
    # The ingress makes image ids, and these hold segmentation paths as the user wrote them, like the main job's.
    ingress = dataclasses.replace(local, segmentation=config.segmentation)
    segmenting = serve.deployment(
        ProductSegmentation,
        **_scaling(config.deployments.segmentation, target=4),
        # As many again wait in the replica, so that its threads find work at once.
        max_ongoing_requests=2 * FETCHES,
    ).bind(local)
    generating = serve.deployment(
        generation,
        name=AdGeneration.__name__,
        **_scaling(config.deployments.generation, target=sampling.batch_size),
        # Beyond what steps and one batch that waits for it, images wait at the router, where any replica may take them.
        max_ongoing_requests=sampling.images_in_flight + sampling.batch_size,
        max_queued_requests=config.limits.max_queued_images,
    ).bind(local, model.fingerprint)
    return serve.deployment(
        serve.ingress()(AdIngress),
        **_scaling(config.deployments.ingress, target=_MAX_OPEN // 4),
        max_ongoing_requests=_MAX_OPEN,
        max_queued_requests=_MAX_OPEN,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    ).bind(ingress, model, segmenting, generating)


def configuration(arguments: dict[str, Any]) -> ServeConfig:
    """The settings as the user wrote them. Raises: ValueError."""
    rest = dict(arguments)
    file = rest.pop("config", None)
    try:
        return load_config(ServeConfig, file, [f"{name}={_word(value)}" for name, value in dotted(rest)])
    except ValueError as error:
        if not str(error).startswith("unknown setting method;"):
            raise
        raise ValueError(
            "method: the endpoint makes RefAdGen's images only; other methods run in the main job"
        ) from None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # load_config reads YAML, and JSON is YAML


def _scaling(replicas: ReplicasConfig, target: int) -> dict[str, Any]:
    """Options of one deployment. target: requests under way per replica, when the number of replicas may vary."""
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus}}
    if replicas.max_replicas == replicas.min_replicas:
        return options | {"num_replicas": replicas.min_replicas}
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.min_replicas, max_replicas=replicas.max_replicas, target_ongoing_requests=target
        )
    }
