"""Whether a student can be cut out of a teacher."""

from collections.abc import Mapping

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
        raise UserError(f"teacher '{teacher.spec.name}' is a {teacher.family} host and student "
                        f"'{student.spec.name}' a {student.family} one; extraction needs one family")


def check_fit(teacher: Weights, student: Weights, options: ExtractionOptions) -> tuple[Sizes, Sizes]:
    """The matrices of both hosts, after refusing a student that is larger in depth or in any matrix, or has
    other matrices.

    Raises:
        UserError: names both hosts, the place and both sizes.
    """
    small, large = f"student '{student.spec.name}'", f"teacher '{teacher.spec.name}'"
    shapes = teacher.spec.shape, student.spec.shape
    for stack, depth in shapes[1].layers.items():
        if depth > shapes[0].layers[stack]:
            raise UserError(f"{small} has {depth} {stack} layers and {large} only {shapes[0].layers[stack]}; "
                            "extraction only shrinks, so exchange them")
    if options.structure == "aligned":
        for axis in HOST_AXES:
            if (wanted := shapes[1].size(axis) or 0) > (had := shapes[0].size(axis) or 0):
                raise UserError(f"{small} has {axis} {wanted} and {large} only {had}; an aligned cut only "
                                "shrinks, so use structure=block, or exchange them")
    have, want = teacher.places(options), student.places(options)
    sites = [{(place.stack, place.site) for place in places} for places in (have, want)]
    if sites[0] != sites[1]:
        stack, site = sorted(sites[0] ^ sites[1])[0]
        raise UserError(f"only one of {large} and {small} has {stack} {site}; leave {site} out of the "
                        "extraction's sites")
    for place, size in want.items():
        source = have[place]
        tall = size[0] > source[0] and place.site != "head"  # vocabularies may differ: tokens are matched
        wide = size[1] > source[1] and place.site != "embedding"
        if tall or wide:
            raise UserError(f"{place.key} is {size[0]} x {size[1]} in {small} and only {source[0]} x "
                            f"{source[1]} in {large}; extraction only shrinks, so exchange them")
        if options.rank > min(size):
            raise UserError(f"rank {options.rank} is larger than the smaller side of {place.key}, {size[0]} "
                            f"x {size[1]} in {small}; lower the method's r")
    return have, want
