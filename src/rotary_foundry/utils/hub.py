"""Check whether the Hugging Face hub can be reached; its own client takes half a minute or more to fail."""

from rotary_foundry.utils.errors import NeedsNetwork

SECONDS = 5  # time limit for an answer


def check_hub(what: str) -> None:
    """Check in seconds whether the hub can be reached; with HF_HUB_OFFLINE=1 its cache is used instead.

    Args:
        what: what has to be downloaded, and what would not need it; the beginning of the error.

    Raises:
        NeedsNetwork: the hub cannot be reached.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        requests.head(constants.ENDPOINT, timeout=SECONDS)
    except requests.RequestException as error:
        raise NeedsNetwork(
            f"{what}; {constants.ENDPOINT} cannot be reached ({type(error).__name__}); to use the hub's cache, set "
            "HF_HUB_OFFLINE=1"
        ) from None
