"""Words of textual inversions in a pipeline: each of a word's vectors is a token of both tokenizers and encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AddedToken

from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import WordVectors
from sdxl_ray.formats.textual_inversion import read_vectors, require_word
from sdxl_ray.io.artifact import Artifact


def artifact_words(artifact: Artifact, widths: tuple[int, int]) -> dict[str, WordVectors]:
    """The words that an artifact brings. widths: of the encoders. Raises UserError as `read_vectors`."""
    where = f"artifact {str(artifact.folder)!r}"
    return {
        word: read_vectors(artifact.folder / name, widths, f"{where}: {name}")
        for word, name in artifact.word_files.items()
    }


def text_widths(pipe: Any) -> tuple[int, int]:
    """The widths of a pipeline's text encoders."""
    return pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.hidden_size


@torch.no_grad()
def add_words(pipe: Any, words: Mapping[str, WordVectors], where: str) -> None:
    """Let prompts say `words`. A word with n vectors is the tokens `word`, `word_1`, ..., as diffusers names them.

    Unlike in diffusers, a word of letters is not found inside longer words: "zyx" is not in "zyxel".
    Raises UserError for a word that is one token of the base's already: prompts would lose its meaning.
    """
    both = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    for word, vectors in words.items():
        require_word(word, where)
        require_new_word(word, (pipe.tokenizer, pipe.tokenizer_2), where, vectors.clip_l.shape[0])
        for (tokenizer, encoder), rows_NC in zip(both, (vectors.clip_l, vectors.clip_g), strict=True):
            tokens = _tokens(word, rows_NC.shape[0])
            whole = word[0].isalnum() and word[-1].isalnum()
            tokenizer.add_tokens([AddedToken(token, single_word=whole) for token in tokens])
            _add_rows(encoder, tokenizer.convert_tokens_to_ids(tokens), rows_NC)
            _pool_at(encoder, tokenizer.eos_token_id)


def require_new_word(word: str, tokenizers: Sequence[Any], where: str, vectors: int = 1) -> None:
    """Raise UserError for a word that is one token of a tokenizer's already."""
    for tokenizer in tokenizers:
        known = tokenizer.get_vocab()
        if len(tokenizer.tokenize(word)) == 1 or any(token in known for token in _tokens(word, vectors)):
            raise UserError(
                f"{where}: the base knows the word {word!r} already: give another with `import --word`, as "
                f"<{word.strip('<>')}-1>"
            )


def _tokens(word: str, vectors: int) -> list[str]:
    return [word, *(f"{word}_{number}" for number in range(1, vectors))]


def _add_rows(encoder: Any, ids: list[int], rows_NC: torch.Tensor) -> None:
    size = max(encoder.get_input_embeddings().num_embeddings, *(number + 1 for number in ids))
    # With `mean_resizing`, transformers computes a covariance of the whole table for rows that are overwritten here.
    encoder.resize_token_embeddings(size, mean_resizing=False)
    table = encoder.get_input_embeddings().weight.requires_grad_(False)
    table[ids] = rows_NC.to(table)


def _pool_at(encoder: Any, eos_token_id: int) -> None:
    """Pool at the end token. SDXL's configs say `eos_token_id: 2`, with which transformers takes the largest id."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos_token_id
    encoder.config.eos_token_id = eos_token_id
