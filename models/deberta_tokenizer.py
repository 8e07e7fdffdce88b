"""The tokenizer of a DeBERTa's folder, with two faults of transformers 5 corrected.

transformers reads the pieces, but neither sentencepiece's normalisation table nor its
single bytes: "½", "…" and "ﬁ" would be unknown. For a folder without tokenizer files
it makes a tokenizer with an empty vocabulary.
"""

from pathlib import Path
from typing import Any


def read_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a DeBERTa-v2 or v3.

    Args:
        folder: in HF's layout, with `tokenizer.json` or sentencepiece's `spm.model`.

    Returns:
        A tokenizer of transformers; unchanged if it is of another class than DeBERTa's.

    Raises:
        ValueError: both files are missing, or the file is damaged.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer, DebertaV2Tokenizer

    file, pieces = folder / "tokenizer.json", folder / "spm.model"
    held = None
    if file.is_file():
        held = Tokenizer.from_file(str(file))
    elif pieces.is_file():  # transformers would read a damaged one as tiktoken's
        held = _from_sentencepiece(pieces)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, DebertaV2Tokenizer):
        return tokenizer
    if held is None:
        raise ValueError("tokenizer.json and spm.model are missing")
    # tokenizer.json has its own normalizer for this.
    if tokenizer.do_lower_case and not file.is_file():
        held.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), held.normalizer]
        )
    tokenizer.backend_tokenizer.normalizer = held.normalizer
    tokenizer.backend_tokenizer.model = held.model
    return tokenizer


def _from_sentencepiece(path: Path) -> Any:
    """Builds the model and the normalizer of a sentencepiece file."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, models, normalizers

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        spec, trainer = proto.normalizer_spec, proto.trainer_spec
        unigram = models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces],
            unk_id=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
        )
        steps: list[Any] = []
        if table := spec.precompiled_charsmap:
            # The table holds NFKC, so NFC changes nothing but this: the library looks
            # up only the letter where an accent follows as a character of its own.
            steps = [normalizers.NFC(), normalizers.Precompiled(table)]
    except Exception as error:  # protobuf's and tokenizers' errors share no base class
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if trainer.model_type != trainer.UNIGRAM:
        name = trainer.ModelType.Name(trainer.model_type)
        raise ValueError(f"{path.name} has model_type {name}, expected UNIGRAM")
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z| +(?= )"), ""))
    tokenizer = Tokenizer(unigram)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer
