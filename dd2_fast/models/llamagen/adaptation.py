"""Stage 0: a teacher whose token table is replaced by an MLP, so that it reads any vector."""

from __future__ import annotations

import torch

from .adapter import EmbeddingFit, fit_embedding_mlp
from .teacher import LlamaGenTeacher


def adapt(
    teacher: LlamaGenTeacher, *, smooth: int = 1024, exact: bool = True, seed: int = 0
) -> tuple[LlamaGenTeacher, EmbeddingFit]:
    """A copy of ``teacher`` that reads any code vector, and how well its embedding was fitted.

    The copy has the teacher's codebook or tokenizer, and gradients on. Arguments are those of
    :func:`fit_embedding_mlp`; :class:`dd2_fast.training.stages.AdaptationStage` fine-tunes it.
    ``exact`` makes its logits the teacher's at once; without it, as in the paper, only fine-tuning
    brings them back.

    Raises:
        ValueError: the teacher is adapted already, or has no codebook.
    """
    if teacher.adapted:
        raise ValueError("teacher: expected one with a token table, got an adapted one")
    table = teacher.get_parameter("tok_embeddings.weight")
    mlp, fit = fit_embedding_mlp(teacher.codebook, table, smooth=smooth, exact=exact, seed=seed)
    with torch.device("meta"):
        config = {**teacher.config, "adapter_width": smooth, "adapter_codes": exact}
        copy = type(teacher)(**config, **teacher.data)
    state = {k: v.clone() for k, v in teacher.state_dict().items() if k != "tok_embeddings.weight"}
    state.update({f"tok_embeddings.{k}": v for k, v in mlp.state_dict().items()})
    copy.load_state_dict(state, assign=True)
    copy.to(table.device)
    copy.tok_embeddings.to(table.dtype)
    copy.tokenizer = teacher.tokenizer
    return copy.train(teacher.training), fit
