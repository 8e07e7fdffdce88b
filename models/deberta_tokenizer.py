"""The tokenizer of a DeBERTa's folder, put right where transformers 5 is wrong.

It takes the pieces from the files, but neither the table by which sentencepiece
normalises text nor the pieces of single bytes: "½", "…" and "ﬁ" would be unknown.
Of a folder without either file it makes a tokenizer that knows no word.
"""

from pathlib import Path
from typing import Any


def read_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a DeBERTa-v2 or v3.

    Args:
        folder: in HF's layout, with `tokenizer.json` or else `spm.model`, the file of
            sentencepiece.

    Returns:
        A tokenizer of transformers; what another class than DeBERTa's makes, as it is.

    Raises:
        ValueError: neither file is there, or it is damaged.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer, DebertaV2Tokenizer

    file, pieces = folder / "tokenizer.json", folder / "spm.model"
    held = None
    if file.is_file():
        held = Tokenizer.from_file(str(file))
    elif pieces.is_file():  # transformers takes a damaged one for tiktoken's
        held = _from_sentencepiece(pieces)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, DebertaV2Tokenizer):
        return tokenizer
    if held is None:
        raise ValueError("neither tokenizer.json nor spm.model is there")
    if tokenizer.do_lower_case and not file.is_file():  # which says so itself
        held.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), held.normalizer]
        )
    tokenizer.backend_tokenizer.normalizer = held.normalizer
    tokenizer.backend_tokenizer.model = held.model
    return tokenizer


def _from_sentencepiece(path: Path) -> Any:
    """Makes the model and the normalizer of a file of sentencepiece."""
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
            # The table holds NFKC, for which NFC changes nothing; but the library
            # looks up the letter alone where an accent follows as its own character.
            steps = [normalizers.NFC(), normalizers.Precompiled(table)]
    except Exception as error:  # protobuf's and the library's have nothing in common
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if trainer.model_type != trainer.UNIGRAM:
        kind = trainer.ModelType.Name(trainer.model_type)
        raise ValueError(f"{path.name} is of model_type {kind}, expected UNIGRAM")
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z| +(?= )"), ""))
    tokenizer = Tokenizer(unigram)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer
