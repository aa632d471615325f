"""What a contributor's tools and CI run is what `make` and `.ci/run` run."""

import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_workflow_runs_the_script_that_runs_lint_and_test() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the key `on` as a boolean
    for step in job["steps"]:
        if "uses" in step:
            assert step["uses"].rpartition("@v")[2].isdigit(), f"{step['uses']}: pin a major version"
    commands = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert "make lint" in commands
    assert "make test" in commands


def test_hooks_before_a_commit_run_what_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert repo["repo"] == "local"  # versions come from constraints.txt, so that hooks and CI agree
    hooks = {hook["id"]: shlex.split(hook["entry"]) for hook in repo["hooks"]}
    recipes = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t$(BIN)/")]
    for entry in hooks.values():
        command = " ".join(word for word in entry if word != "--force-exclude").replace(".venv/bin/", "$(BIN)/")
        assert any(recipe.removesuffix(" .") == command for recipe in recipes), command
    assert all(hook["language"] == "system" for hook in repo["hooks"])
