"""Settings of the stages that train on a user's own images."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Amount, Checked, Count, one_of

CROPS = ("center", "random", "pad", "squeeze")
ON_ERROR = ("skip", "refuse")


def share(name: str, value: float, *, whole: bool = True) -> None:
    """ValueError unless ``value`` is in [0, 1], or in [0, 1) where it may not be ``whole``."""
    if not 0 <= value <= 1 or (value == 1 and not whole):
        raise ValueError(f"{name}: expected a share in [0, 1{']' if whole else ')'}, got {value}")


@dataclass(frozen=True)
class DataConfig(Checked):
    """What becomes of a user's images.

    Args:
        size: pixels a side. channels: 1, grey, or 3.
        crop: ``"center"`` or ``"random"``: the shorter side becomes ``size`` and a square is cut
            out; ``"pad"``: the whole image, made smaller only, on black; ``"squeeze"``: both sides
            become ``size``.
        flip: whether half of the images are mirrored while training.
        held_out: share that is never trained on, and ``split_seed`` which: a function of the seed
            and an image's number. Files that say it themselves (MNIST's ``t10k``) are followed.
        on_error: ``"skip"`` leaves out broken, empty, tiny, huge, CMYK, palette, 16-bit and
            animated images, ``"refuse"`` stops at once; both name them.
        smallest: pixels of the shorter side below which an image is tiny; 0: half of ``size``.
        largest: pixels above which one is huge. workers: processes that decode, 0: none.
    """

    size: int = 32
    channels: int = 3
    crop: str = "center"
    flip: bool = True
    held_out: Amount = 0.1
    split_seed: Count = 0
    on_error: str = "skip"
    smallest: Count = 0
    largest: int = 100_000_000
    workers: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("crop", self.crop, CROPS)
        one_of("on_error", self.on_error, ON_ERROR)
        share("held_out", self.held_out, whole=False)
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {self.channels}")


@dataclass(frozen=True)
class ImageTokenizerConfig(Checked):
    """A tokenizer and its training.

    ``continuous_steps`` of ``steps`` are a plain autoencoder's, then k-means over what is coded of
    ``start_images`` gives the codes.

    Args:
        patch_nums: VAR alone: sides of the scales; the last times ``2^(levels - 1)`` is the images'
            side, a level for each of ``multipliers``. LlamaGen's one side follows from these.
        vocabulary: V. dimension: C. channels, multipliers, blocks, groups: of the network; phis:
            of VAR's, latents: of LlamaGen's, the encoder's output channels.
        commitment: weight of ``|f_hat - f|^2`` for the features. absolute: weight of the absolute
            error beside the squared one. perceptual: weight of the distance in the features of an
            extractor. adversarial: weight of the discriminator's verdict. The last two count only
            where a program gives the networks.
        usage_decay: of the running mean of how often a code is used. restart: a code used less
            than this share of an even use starts again from a residual, every ``restart_every``
            steps of the first ``restart_until`` (a share) of the steps.
    """

    patch_nums: tuple[int, ...] = (1, 2, 3, 4)
    vocabulary: int = 256
    dimension: int = 8
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 2, 2)
    blocks: int = 1
    phis: int = 4
    latents: int = 64
    groups: int = 8
    continuous_steps: Count = 1000
    steps: int = 5000
    batch: int = 64
    rate: Amount = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Amount = 0.0
    warmup: Count = 50
    commitment: Amount = 0.25
    absolute: Amount = 0.2
    perceptual: Amount = 1.0
    adversarial: Amount = 0.1
    start_images: int = 1024
    usage_decay: float = 0.9
    restart: Amount = 0.03
    restart_every: int = 10
    restart_until: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("usage_decay", "restart_until"):
            share(name, getattr(self, name))
        if self.continuous_steps >= self.steps:
            raise ValueError(
                f"continuous_steps: expected fewer than steps = {self.steps}, "
                f"got {self.continuous_steps}"
            )
        if self.vocabulary < len(self.patch_nums):
            raise ValueError(
                f"vocabulary: expected at least a code a scale, {len(self.patch_nums)}, "
                f"got {self.vocabulary}"
            )


@dataclass(frozen=True)
class ImageTeacherConfig(Checked):
    """A transformer and its training: AdamW, warm-up and a cosine to ``floor`` of the rate.

    Args:
        width, layers, heads: of a new one; a loaded teacher has its own. shared_aln: VAR alone.
        label_dropout: share of labels that become the null class, for guidance.
        token_noise: share of the tokens read that are replaced by random ones.
        embedding_noise: standard deviation of what is added to the codes read; not by a teacher
            that reads tokens, LlamaGen's, whose adaptation has its own.
    """

    width: int = 256
    layers: int = 8
    heads: int = 4
    shared_aln: bool = False
    steps: Count = 20000
    batch: int = 128
    rate: Amount = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Amount = 0.05
    warmup: Count = 200
    floor: Amount = 0.02
    label_dropout: Amount = 0.1
    token_noise: Amount = 0.05
    embedding_noise: Amount = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("floor", "label_dropout", "token_noise", "ema_decay"):
            share(name, getattr(self, name))


@dataclass(frozen=True)
class ImagePairsConfig(Checked):
    """Pairs of noise and the tokens that DD1's map gives it, drawn once, ``batch`` at a time, for
    all stages that learn from the teacher's samples; ``count = 0``: new ones for every batch."""

    count: Count = 0
    batch: int = 250


@dataclass(frozen=True)
class ImageClassifierConfig(Checked):
    """The classifier whose labels and features judge images; ``steps = 0`` leaves it out."""

    width: int = 32
    features: int = 64
    steps: Count = 1000
    batch: int = 64
    rate: Amount = 2e-3
    weight_decay: Amount = 0.05


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """What a run is judged on: images of each way to make them, 0 for no evaluation.

    Each number is a row, ``teacher_steps``: of steps in all, the teacher's after the one of the
    generator's; ``jacobi``: of the teacher's passes over all tokens after it. ``grid``: images of a
    picture, ``neighbours`` of precision and recall.
    """

    samples: Count = 5000
    teacher_steps: tuple[int, ...] = (2, 3, 4)
    jacobi: tuple[int, ...] = ()
    grid: int = 80
    neighbours: int = 3
    batch: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(passes < 1 for passes in self.jacobi):
            raise ValueError(f"jacobi: expected numbers of at least 1, got {self.jacobi}")
