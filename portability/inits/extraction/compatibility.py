"""Whether a student can be cut out of a teacher."""

import math
from collections.abc import Mapping

from portability.core.architectures import LORA_AXES
from portability.core.errors import UserError
from portability.core.specs import HOST_AXES
from portability.inits.extraction.options import ExtractionOptions, Place
from portability.inits.extraction.weights import Weights

Sizes = Mapping[Place, tuple[int, int]]


def check_family(teacher: Weights, student: Weights) -> None:
    """Refuse hosts of two families.

    Raises:
        UserError: names both.
    """
    if teacher.family != student.family:
        raise UserError(f"teacher '{teacher.spec.name}' is a {teacher.family} host and student '{student.spec.name}' a "
                        f"{student.family} one; extraction needs one family")


def check_fit(teacher: Weights, student: Weights, options: ExtractionOptions) -> tuple[Sizes, Sizes]:
    """The matrices of both hosts, after refusing a student that is larger in depth or in any matrix, or has other matrices.

    Raises:
        UserError: names both hosts, the place and both sizes.
    """
    small, large = f"student '{student.spec.name}'", f"teacher '{teacher.spec.name}'"
    shapes = teacher.spec.shape, student.spec.shape
    for stack, depth in shapes[1].layers.items():
        if depth > shapes[0].layers[stack]:
            raise UserError(f"{small} has {depth} {stack} layers and {large} only {shapes[0].layers[stack]}; extraction only "
                            f"shrinks, so exchange them")
    if options.structure == "aligned":
        for axis in HOST_AXES:
            if (wanted := shapes[1].size(axis) or 0) > (had := shapes[0].size(axis) or 0):
                raise UserError(f"{small} has {axis} {wanted} and {large} only {had}; an aligned cut only shrinks, so use "
                                f"structure=block, or exchange them")
    have, want = teacher.places(options), student.places(options)
    sites = [{(place.stack, place.site) for place in places} for places in (have, want)]
    if sites[0] != sites[1]:
        stack, site = sorted(sites[0] ^ sites[1])[0]
        raise UserError(f"only one of {large} and {small} has {stack} {site}; leave {site} out of the extraction's sites")
    for place, size in want.items():
        source = have[place]
        tall = size[0] > source[0] and place.site != "head"  # vocabularies are matched by token, and may differ
        wide = size[1] > source[1] and place.site != "embedding"
        if tall or wide:
            raise UserError(f"{place.key} is {size[0]} x {size[1]} in {small} and only {source[0]} x {source[1]} in {large}; "
                            f"extraction only shrinks, so exchange them")
        if options.rank > min(size):
            raise UserError(f"rank {options.rank} is larger than the smaller side of {place.key}, {size[0]} x {size[1]} in "
                            f"{small}; lower the method's r")
    for host, places in ((teacher, have), (student, want)):
        _check_config(host, places)
    return have, want


def _check_config(host: Weights, places: Sizes) -> None:
    """Refuse a host whose matrices are not as large as its config.json says."""
    for place, size in places.items():
        if place.stack == "shared":
            continue
        into, out = LORA_AXES[place.site.removeprefix("cross_")]
        expected = tuple(math.prod(host.spec.shape.size(axis) or 0 for axis in axes) for axes in (out, into))
        if expected != tuple(size):
            raise UserError(f"host '{host.spec.name}': {place.key} is {size[0]} x {size[1]}, but its config.json makes it "
                            f"{expected[0]} x {expected[1]}")
