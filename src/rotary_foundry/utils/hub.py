"""The Hugging Face hub: can it be reached? Its own client tries for half a minute and more before it says no."""

from rotary_foundry.utils.errors import NeedsNetwork

SECONDS = 5  # that it has for an answer


def check_hub(what: str) -> None:
    """See in seconds whether the hub can be reached; with HF_HUB_OFFLINE=1 its cache will do.

    Args:
        what: is to be fetched, and what would do without; the beginning of the error.

    Raises:
        NeedsNetwork: it cannot.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        requests.head(constants.ENDPOINT, timeout=SECONDS)
    except requests.RequestException as error:
        raise NeedsNetwork(
            f"{what}; {constants.ENDPOINT} cannot be reached ({type(error).__name__}), and what is in the hub's cache "
            "is read with HF_HUB_OFFLINE=1"
        ) from None
