"""Background removers that a user brings: what stands out in a photograph, without a name to look for.

An ONNX file (BiRefNet, IS-Net, U²-Net and their kind) runs in ONNX Runtime; a folder or hub id is a semantic segmenter
of transformers. Code that comes with a model is never run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from refadgen.config import SegmentationConfig
from refadgen.config.devices import resolve_device
from refadgen.config.sections import ONNX_SUFFIX
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError
from refadgen.segmentation.answers import confidence, probe_image, require_usable, sigmoid, to_alpha
from refadgen.segmentation.hub import LOADING_ERRORS, loading_fault

FIELD = "segmentation.saliency_model"
FREE_SIDE_PX = 1024
"""Side of the square for a file that takes any size: what IS-Net and BiRefNet are trained at."""
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "centered": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of pixels from 0 to 1, by `segmentation.saliency_normalization`."""
TOLERANCE = 0.01
"""A probability may lie this far outside of 0 to 1: resampling inside a network overshoots."""
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Network = Callable[[np.ndarray], np.ndarray]
"""Photograph (uint8 HW3) to raw values of the product (float32 HW, any size)."""


class SaliencySegmenter:
    """A background remover, one image at a time."""

    source = "saliency_model"
    field = FIELD

    def __init__(self, config: SegmentationConfig, *, gpu_expected: bool = False, num_threads: int = 1) -> None:
        """gpu_expected: the cluster gave this process a GPU. num_threads: of ONNX Runtime on the CPU.

        Raises: ValueError naming the field whose file, package or device is not there, or whose network is of another
        kind, or answers the probe with NaN or the same value everywhere.
        """
        assert config.saliency_model is not None
        place = f"{FIELD}={config.saliency_model!r}"
        device = resolve_device(config.device, gpu_expected=gpu_expected, field="segmentation.device")
        if Path(config.saliency_model).suffix == ONNX_SUFFIX:
            asked = gpu_expected or config.device.startswith("cuda")
            normalization = NORMALIZATIONS[config.saliency_normalization]
            self._network = _load_onnx(
                place, config.saliency_model, normalization, device, gpu_asked=asked, num_threads=num_threads
            )
        else:
            self._network = _load_transformers(place, config.saliency_model, device)
        try:
            answer = self._network(probe_image())
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        require_usable(place, answer)
        self._gives_logits = _gives_logits(place, answer)

    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        """Returns alpha, uint8 HW, and how clearly the network separates, 0 to 1 (`answers.confidence`).

        image_u8: uint8 HW3, RGB. name: is not used; the network knows no names.
        Raises: RowError: `product_not_found` (rejected), or `network_failed`.
        """
        answer = self._network(image_u8)
        if not self._gives_logits and (answer.min() < -TOLERANCE or answer.max() > 1 + TOLERANCE):
            raise RowError(
                "network_failed",
                f"{FIELD}: values from {answer.min():g} to {answer.max():g} for this photograph, not 0 to 1 as before",
            )
        probability = sigmoid(answer) if self._gives_logits else np.clip(answer, 0, 1)
        alpha = to_alpha(probability, (image_u8.shape[1], image_u8.shape[0]), FIELD)
        if not (alpha > 127).any():
            raise RowError("product_not_found", f"nothing stands out in the photograph ({FIELD})")
        return alpha, confidence(probability)


def _gives_logits(place: str, answer: np.ndarray) -> bool:
    """Whether a network answers with logits instead of probabilities: files of the same network come in both forms.

    Raises: ValueError for values that are neither.
    """
    lowest, highest = float(answer.min()), float(answer.max())
    if lowest >= -TOLERANCE and highest <= 1 + TOLERANCE:
        return False
    # Logits of the backdrop are below 0. A map of 0 to 255 has none.
    if lowest < 0:
        return True
    raise ValueError(f"{place}: answers with values from {lowest:g} to {highest:g}; must be probabilities or logits")


def _load_onnx(
    place: str,
    file: str,
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    device: torch.device,
    *,
    gpu_asked: bool,
    num_threads: int,
) -> Network:
    """A network in an ONNX file. Raises: ValueError."""
    session = _session(place, file, device, gpu_asked=gpu_asked, num_threads=num_threads)
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if inputs else []
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in _FLOATS:
        given = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise ValueError(f"{place}: takes {given or 'nothing'}; must take one image as float, 1×3×H×W")
    # A size that is free is a name or None.
    if shape[0] not in (1, None) and not isinstance(shape[0], str):
        raise ValueError(f"{place}: takes batches of {shape[0]} images; must take one, 1×3×H×W")
    if shape[1] != 3 and isinstance(shape[1], int):
        raise ValueError(f"{place}: takes an image of the shape {shape}; must be 1×3×H×W")
    height, width = (side if isinstance(side, int) and side > 0 else FREE_SIDE_PX for side in shape[2:])
    name, kind = inputs[0].name, _FLOATS[inputs[0].type]
    first_output = session.get_outputs()[0].name  # U²-Net and its kin put the fused map first
    mean, deviation = (np.asarray(each, np.float32) for each in normalization)

    def run(image_u8: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image_u8).resize((width, height), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, np.float32) / 255 - mean) / deviation
        try:
            answer = session.run([first_output], {name: pixels.transpose(2, 0, 1)[None].astype(kind)})[0]
        except Exception as error:  # its errors have no common base class
            raise RuntimeError(str(error)) from error
        return _as_map(answer)

    return run


def _as_map(answer: Any) -> np.ndarray:
    """An answer of ONNX Runtime as float32 HW. Raises: ValueError unless it is one map."""
    shape = getattr(answer, "shape", ())
    if len(shape) < 2 or any(side != 1 for side in shape[:-2]) or min(shape[-2:]) < 2:
        raise ValueError(f"answers with the shape {list(shape)}; must be one mask, 1×1×H×W")
    answer_hw: np.ndarray = answer.reshape(shape[-2:]).astype(np.float32)
    return answer_hw


def _session(place: str, file: str, device: torch.device, *, gpu_asked: bool, num_threads: int) -> Any:
    """Raises: ValueError for a missing package, a missing file, one of another format, or a GPU that it cannot use."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{place}: needs the extra `onnx` (pip install 'refadgen[onnx]'): {error}") from error
    if not Path(file).is_file():
        raise ValueError(f"{place}: there is no such file")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers = [("CUDAExecutionProvider", {"device_id": device.index or 0}), *providers]
        elif gpu_asked:
            raise ValueError(
                f"{place}: this ONNX Runtime has no CUDA: install onnxruntime-gpu in place of onnxruntime, "
                "or set segmentation.device=cpu and num_gpus=0"
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and named in the ledger
    # Idle threads would spin on the cores of other actors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # its errors have no common base class
        raise ValueError(f"{place}: is no ONNX file that ONNX Runtime can load: {error}") from error


def _load_transformers(place: str, address: str, device: torch.device) -> Network:
    """A semantic segmenter with one label (the product) or two (backdrop, product). Raises: ValueError."""
    if Path(address).is_file():
        raise ValueError(f"{place}: is a file; must be an ONNX file ending in {ONNX_SUFFIX}, a folder or a hub id")
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

    try:
        config = AutoConfig.from_pretrained(address, trust_remote_code=False)
        kind = (config.architectures or [config.model_type])[0]
        if not kind.endswith("ForSemanticSegmentation") or config.num_labels > 2:
            raise ValueError(
                f"is {kind} with {config.num_labels} labels, must be a …ForSemanticSegmentation with one or two "
                "(backdrop, product)"
            )
        processor = AutoImageProcessor.from_pretrained(address, trust_remote_code=False)
        model, report = AutoModelForSemanticSegmentation.from_pretrained(
            address, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise loading_fault(place, error) from error
    require_all_weights(place, report)
    model.to(device).eval()

    def run(image_u8: np.ndarray) -> np.ndarray:
        # A copy: arrays of Pillow images are read-only, which torch does not support.
        inputs = processor(images=image_u8.copy(), input_data_format="channels_last", return_tensors="pt").to(device)
        with torch.inference_mode():
            logits = model(**inputs).logits[0].float()
        # Of two labels, the difference is the product's logit.
        return sigmoid((logits[-1] - logits[0] if len(logits) == 2 else logits[0]).cpu().numpy())

    return run
