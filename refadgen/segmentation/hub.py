"""Why a transformers checkpoint cannot be loaded, in words that say what to do."""

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError)
"""What transformers raises for a folder, a file or a hub id that it cannot use."""


def loading_fault(place: str, error: Exception) -> ValueError:
    """The error for the user. place: the setting and its value, such as segmentation.sam3='facebook/sam3'."""
    causes = list(_causes(error))
    if any(isinstance(each, GatedRepoError) for each in causes):
        # Before the status: a gate answers 401 without a token, and 403 with one that has not accepted.
        return ValueError(
            f"{place}: its owner asks for a licence to be accepted first: accept it on the model's page, then give "
            "its token in HF_TOKEN (or by `hf auth login`), or download it and give the folder"
        )
    status = next((each.response.status_code for each in causes if isinstance(each, HfHubHTTPError)), None)
    if status in (401, 403, 404):
        return ValueError(
            f"{place}: the hub has no model of that name, or it is private (status {status}): check the name, and give "
            "a token that may read it in HF_TOKEN (or by `hf auth login`)"
        )
    # The hub's models that bring Python files: transformers asks for consent, which is never given.
    if "trust_remote_code" in str(error):
        return ValueError(
            f"{place}: needs code of its own, and code from a model is never run; "
            "give an ONNX file of it in segmentation.saliency_model"
        )
    return ValueError(f"{place}: cannot be loaded: {error}")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
