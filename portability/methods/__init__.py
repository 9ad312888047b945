"""PEFT methods on a host. A library is one backend: a file here and a line in BACKENDS, or an installed
package with an entry point in the group ``portability.methods`` that names its `MethodBackend` class."""

from portability.core.errors import UserError, validate_choice
from portability.core.plugins import load, plugins
from portability.core.specs import MethodSpec
from portability.hosts.host import Host
from portability.hosts.spread import check_method
from portability.methods.adapters_backend import AdaptersBackend
from portability.methods.base import AttachedMethod, MethodBackend
from portability.methods.peft_backend import PeftBackend
from portability.methods.subtractive_lora import LoraBackend

GROUP = "portability.methods"
BACKENDS: dict[str, type[MethodBackend]] = {
    "adapters": AdaptersBackend, "peft": PeftBackend, "portability": LoraBackend}


def attach(host: Host, spec: MethodSpec) -> AttachedMethod:
    """Put a method on a host, in place, until it is detached.

    Raises:
        UserError: no such library, or it is not installed or clashes with one of ours; or as
            `MethodBackend.attach`, or `spread.check_method`.
    """
    outside = plugins(GROUP, tuple(BACKENDS))
    name = validate_choice(spec.library, {*BACKENDS, *outside}, "PEFT library")
    try:
        backend = BACKENDS[name] if name in BACKENDS else load(outside[name])
        attached = backend().attach(host, spec)
    except ImportError as error:
        raise UserError(f"method '{spec.name}': the PEFT library '{name}' cannot be imported ({error}); "
                        "install it, or use one of "
                        f"{', '.join(sorted(BACKENDS.keys() | outside))}") from error
    try:
        if host.is_spread:
            names = [layout.name for layout in (*attached.layouts, *attached.frozen)]
            check_method(spec.name, names, host.model, host.devices)
    except UserError:
        attached.detach()
        raise
    if not attached.layouts:
        attached.detach()
        raise UserError(f"method '{spec.name}' adds no parameter to host '{host.spec.name}'")
    return attached
