"""Settings: names are checked, values are converted without guessing, and what is printed reads back."""

from pathlib import Path

import pytest
import yaml

from refadgen.config import GenerateConfig, TrainConfig, load_config, to_yaml
from refadgen.config.loading import build


def test_words_come_after_the_file_and_the_file_after_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("sampling: {seed: 3, num_inference_steps: 7}\n")
    config = load_config(GenerateConfig, file, ["sampling.seed=4"])
    assert (config.sampling.seed, config.sampling.num_inference_steps, config.sampling.batch_size) == (4, 7, 8)


def test_what_is_printed_reads_back_as_the_same_configuration() -> None:
    config = load_config(
        GenerateConfig, None, ["fetch.file_roots=[/a, /b]", "stages.generate.num_gpus=0.5", "sampling.guidance_scale=3"]
    )
    assert build(GenerateConfig, yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sampling.guidance=3", r"unknown setting sampling\.guidance; did you mean sampling\.guidance_scale\?"),
        ("sampler.seed=3", r"unknown setting sampler; did you mean sampling\?"),
        ("sampling=3", r"sampling=3: must be a section"),
        ("sampling.seed.x=3", r"sampling\.seed"),
        ("sampling.seed=1.5", r"sampling\.seed=1\.5: must be of type int"),
        ("sampling.seed=yes", r"sampling\.seed=True: must be of type int"),
        ("sampling.fusion_scale=high", r"sampling\.fusion_scale='high': must be of type float"),
        ("sampling.fusion_scale=11", r"sampling\.fusion_scale=11\.0: must be 0 to 10"),
        ("sampling.width_px=513", r"sampling\.width_px=513: must be a multiple of 8"),
        ("stages.fetch.num_actors=many", r"stages\.fetch\.num_actors='many': must be of type int or auto"),
        ("stages.generate.num_gpus=1.5", r"stages\.\*\.num_gpus=1\.5: must be a whole number above 1"),
        ("stages.fetch.num_actors=0", r"stages\.\*\.num_actors=0: must be 1 to 10000"),
        ("output.format=bmp", r"output\.format='bmp': must be one of jpeg, png, webp"),
        ("layout.long_side_px=500", r"layout\.long_side_px=500: needs layout\.as_photographed=true"),
        ("layout.anchor=middle", r"layout\.anchor='middle': must be one of top"),
        ("segmentation.grounding_dino=a", r"belong together"),
        ("model.cuda_graphs=true", r"needs model\.compile=true"),
        ("fetch.file_roots=[1]", r"fetch\.file_roots=\[1\]: must be a list of texts"),
        ("sampling.seed", r"a setting is written section\.field=value"),
        ("sampling.seed=[", r"not a YAML value"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(GenerateConfig, None, [word])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_holds_no_sections_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"--config .*c\.yaml"):
        load_config(GenerateConfig, tmp_path / "c.yaml")


def test_a_folder_named_like_a_number_is_a_text() -> None:
    assert load_config(GenerateConfig, None, ["model.path=2024"]).model.path == "2024"


@pytest.mark.parametrize("field", ["model.device", "segmentation.device"])
def test_a_device_that_is_none_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}='banana': must be auto, cpu, cuda or cuda:N"):
        load_config(GenerateConfig, None, [f"{field}=banana"])
    assert load_config(GenerateConfig, None, [f"{field}=cuda:1"])


def test_numbers_in_scientific_notation_need_no_point() -> None:
    config = load_config(TrainConfig, None, ["optimizer.learning_rate=1e-5", "optimizer.weight_decay=2.5e-3"])
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-5, 2.5e-3)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate"):
        load_config(TrainConfig, None, ["optimizer.learning_rate=fast"])


def test_a_number_may_be_left_to_the_job() -> None:
    words = ["stages.fetch.num_actors=3", "stages.publish.num_actors=auto"]
    stages = load_config(GenerateConfig, None, words).stages
    assert (stages.fetch.num_actors, stages.publish.num_actors, stages.segment.num_actors) == (3, "auto", "auto")


def test_one_setting_leaves_the_other_defaults_of_its_place() -> None:
    stages = load_config(GenerateConfig, None, ["stages.generate.num_gpus=1"]).stages
    assert (stages.generate.num_gpus, stages.generate.num_cpus) == (1, GenerateConfig().stages.generate.num_cpus)
