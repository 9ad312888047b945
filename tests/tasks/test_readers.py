"""Batches that are scored."""

import numpy as np

from portability.tasks.readers import in_parts


def test_scored_batches_are_as_large_as_they_would_be_filled_up_to():
    told: list[float] = []
    parts = list(in_parts(np.arange(40), 8, told.append))
    assert [len(part) for part in parts] == [16, 16, 8] and told == [0.4, 0.8, 1.0]
