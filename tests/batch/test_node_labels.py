"""Nodes by labels: the setting's form, what Ray is given, which nodes count for a pool."""

from typing import Any

import pytest

from refadgen.batch import actor_pools
from refadgen.batch.actor_pools import require_resources
from refadgen.batch.node_labels import may_hold, placement
from refadgen.batch.pool_sizes import NodeSize, PoolSize, size_pools
from refadgen.config import GenerateConfig, load_config

H100, A100 = {"ray.io/accelerator-type": "H100", "zone": "a"}, {"ray.io/accelerator-type": "A100", "zone": "b"}
ONE = PoolSize(1, 1)


def stages(*words: str) -> Any:
    return load_config(GenerateConfig, None, ["stages.generate.num_gpus=1", *words]).stages


def test_the_first_text_is_what_ray_asks_for_and_the_others_its_fallbacks() -> None:
    texts = '[ray.io/accelerator-type=H100 & zone=!b, "zone=in(a-1, c)"]'
    pool = stages(f"stages.generate.label_selector={texts}").generate
    assert placement(pool.label_selector) == {
        "label_selector": {"ray.io/accelerator-type": "H100", "zone": "!b"},
        "fallback_strategy": [{"label_selector": {"zone": "in(a-1, c)"}}],
    }
    assert placement(()) == {"label_selector": None, "fallback_strategy": None}


@pytest.mark.parametrize("text", ["H100", "zone=", "=a", "zone==a", "zone=a & b", "zone=in(a", "zone=in()", "zone=a b"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stages\.\*\.label_selector='.*': must be name=value"):
        load_config(GenerateConfig, None, [f"stages.generate.label_selector=[{text!r}]"])


@pytest.mark.parametrize(
    ("texts", "holds"),
    [
        ([], True),
        (["zone=a"], True),
        (["zone=b"], False),
        (["zone=b", "ray.io/accelerator-type=H100"], True),
        (["zone=a & ray.io/accelerator-type=A100"], False),
        (["zone=!a"], False),
        (["zone=!b"], True),
        (["zone=in(b, a)"], True),
        (["zone=!in(b, a)"], False),
        (["rack=7"], False),
        (["rack=!7"], True),
    ],
)
def test_a_node_holds_what_one_of_the_texts_allows(texts: list[str], holds: bool) -> None:
    assert may_hold(H100, texts) is holds
    assert may_hold(None, texts)  # of a node that an autoscaler may add nobody knows the labels


def test_only_fitting_nodes_count_for_generating_actors() -> None:
    nodes = [NodeSize(16, 4, H100), NodeSize(16, 2, A100), NodeSize(16)]
    assert size_pools(stages(), nodes, main="generate")["generate"] == PoolSize(6, 6)
    chosen = stages("stages.generate.label_selector=ray.io/accelerator-type=A100")
    assert size_pools(chosen, nodes, main="generate")["generate"] == PoolSize(2, 2)


def test_labels_that_no_node_has_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = A100 | {"ray.io/node-id": "0f3a"}
    monkeypatch.setattr(actor_pools, "_live_nodes", lambda: [NodeSize(64), NodeSize(16, 2, labels)])
    monkeypatch.setattr(actor_pools, "_node_groups", list)
    sizes = dict.fromkeys(("fetch", "segment", "generate", "publish"), ONE)
    require_resources(stages("stages.generate.label_selector=zone=b"), sizes)
    wanted = (
        r"stages\.publish\.label_selector=\['zone=c'\]: no node .*; there are ray\.io/accelerator-type=A100, zone=b$"
    )
    monkeypatch.setattr(actor_pools, "_live_nodes", lambda: [NodeSize(16, 2, labels)])
    with pytest.raises(ValueError, match=wanted):
        require_resources(stages("stages.publish.label_selector=zone=c"), sizes)


def test_a_pool_needs_its_gpus_on_the_nodes_of_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pools, "_live_nodes", lambda: [NodeSize(16, 2, A100), NodeSize(16, 0, {"zone": "cpu"})])
    monkeypatch.setattr(actor_pools, "_node_groups", list)
    sizes = dict.fromkeys(("fetch", "segment", "generate", "publish"), ONE)
    with pytest.raises(ValueError, match=r"stages.generate.num_gpus=1: the largest node .* has 0"):
        require_resources(stages("stages.generate.label_selector=zone=cpu"), sizes)
