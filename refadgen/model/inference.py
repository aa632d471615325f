"""Loading the model as the settings say, for every process that makes images."""

import torch

from refadgen.config import ModelConfig
from refadgen.config.devices import resolve_device, resolve_dtype
from refadgen.config.sections import SchedulerName
from refadgen.model.folder import find_model, read_index, recommended_dtype
from refadgen.model.pipeline import RefAdGenPipeline
from refadgen.model.schedulers import other_scheduler
from refadgen.model.step_tables import check_finite


def load_for_inference(
    config: ModelConfig, *, scheduler: SchedulerName = "model", gpu_expected: bool
) -> RefAdGenPipeline:
    """The pipeline on its device, in its number format, with the settings of speed applied.

    Also sets this process's number of CPU threads. scheduler: in place of the model's own. gpu_expected: whether the
    cluster gave this process a GPU.
    Raises: ValueError naming the field whose model, device or number format cannot be, or a scheduler that gives NaN.
    """
    # Threads before anything is computed: sums in another order give other pixels.
    torch.set_num_threads(config.torch_threads)
    device = resolve_device(config.device, gpu_expected=gpu_expected, field="model.device")
    if config.channels_last and device.type == "cpu":
        raise ValueError("model.channels_last=True: is for GPUs, and the model runs on the CPU here; set it to false")
    folder = find_model(config.path)
    recommended = recommended_dtype(read_index(folder), folder)
    name = recommended if config.dtype == "auto" and device.type == "cuda" and recommended else config.dtype
    dtype = resolve_dtype(name, device)
    pipeline = RefAdGenPipeline.from_pretrained(folder, torch_dtype=dtype, device=device)
    pipeline.scheduler = other_scheduler(pipeline.scheduler, scheduler)
    check_finite(pipeline.scheduler)
    pipeline.optimize(channels_last=config.channels_last, compile=config.compile, cuda_graphs=config.cuda_graphs)
    return pipeline
