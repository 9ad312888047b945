"""Whether the Hugging Face hub answers, found out once and quickly: its own libraries try for half a minute."""

import functools
import os
import urllib.error
import urllib.request

SECONDS = 5.0
INSTEAD = "without the hub use the embedded hosts and data: host_set=nano"


@functools.cache
def look_for_hub() -> None:
    """Set $HF_HUB_OFFLINE, for this process and its workers, where the hub does not answer, so that what is not in the local
    cache is an error at once. Call it before huggingface_hub or datasets is imported; does nothing where it is set already."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:  # it answers, which is enough
        return
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
