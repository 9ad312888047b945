"""Whether the Hugging Face hub answers, found out once and quickly (its own libraries try for half a minute),
and what to do where it gives nothing."""

import functools
import logging
import os
import urllib.error
import urllib.request

SECONDS = 5.0
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")  # of a repository, what is not weights
# of requests and httpx, whichever huggingface_hub has: after an answer had begun
BROKEN = ("ChunkedEncodingError", "RemoteProtocolError", "ReadError", "ReadTimeout")
INSTEAD = "without the hub use the embedded hosts and data: host_set=nano"


@functools.cache
def look_for_hub() -> None:
    """Set $HF_HUB_OFFLINE, for this process and its workers, where the hub does not answer, so that what is
    not in the local cache is an error at once. Call it before huggingface_hub or datasets is imported; does
    nothing where it is set already."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it names every request
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:  # it answers, which is enough
        return
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"


def remedy(error: BaseException, repository: str, instead: str = INSTEAD) -> str:
    """What to do about an error of the hub's libraries, of which it may be the cause or the context; the kind
    of error and its first sentence where we know none.

    Args:
        instead: what to do without the hub.
    """
    from huggingface_hub import errors

    login = "log in with a token that may read it (hf auth login, or set HF_TOKEN)"
    remedies = {
        errors.GatedRepoError: f"it is gated: accept its licence on the page of {repository} on the hub, and "
        f"{login}",
        errors.RevisionNotFoundError: "it has no such revision: copy the 40 digits of a commit from its page "
        "on the hub",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private: check its name, or "
        f"{login}",
    }
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in BROKEN:
            return f"the connection broke off ({type(seen).__name__}); run the command again, it goes on"
        for kind, advice in remedies.items():
            if isinstance(seen, kind):
                return advice
        response = seen.response if isinstance(seen, errors.HfHubHTTPError) else None
        if response is not None and response.status_code == 401:
            return f"the hub does not take your token: {login}"
        seen = seen.__cause__ or seen.__context__
    # of datasets, which drops most of the hub's own errors
    if type(error).__name__ == "DatasetNotFoundError":
        return remedies[errors.GatedRepoError if "gated" in str(error) else errors.RepositoryNotFoundError]
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].partition('. ')[0].rstrip('.')}"
    if os.environ.get("HF_HUB_OFFLINE"):
        return ("it is not in the local cache, and the hub does not answer or HF_HUB_OFFLINE is set "
                f"({said}); {instead}")
    return f"{said}; {instead}"
