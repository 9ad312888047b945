"""The words that go with the arm of a study, whose gains over the other inits the study is about."""

from portability.analysis.stats.pairing import EXTRACTED, PORTED

WORDS = {  # what stands in a text for `{arm}` and the like
    PORTED: {
        "arm": PORTED, "start": "a port", "starts": "ports", "origin": "an origin", "its": "its origin",
        "origins": "The training of the origins stands", "of_origin": "origin data",
        "saw": "whether the origin saw the receiving data set", "itself": "porting",
    },
    EXTRACTED: {
        "arm": EXTRACTED, "start": "a start from extracted weights",
        "starts": "starts from extracted weights", "origin": "an extraction", "its": "the extraction",
        "origins": "The extractions stand", "of_origin": "seed examples",
        "saw": "whether the seed examples are of the receiving data set", "itself": "starting",
    },
}


def say(text: str, arm: str, /, **values: object) -> str:
    """A text with the arm's words, and other values, in place of `{arm}` and the like.

    Example:
        >>> say("{label}: what {start} saves", "ported", label="Accuracy")
        'Accuracy: what a port saves'
    """
    return text.format(**WORDS[arm], **values)
