"""The networks of a run over a user's images."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checkpoints.loader import tokenizer_of
from ...metrics.image_classifier import ImageClassifier
from ...models import DD2Generator, DD2Guidance, VARTeacher, VARTokenizer
from ...models.dd2 import DD2Network
from ...models.family import as_module
from ..parallel import Parallel
from ..settings import parse_config
from .stage2 import copy_weights
from .teachers import load_teacher

if TYPE_CHECKING:
    from .images import ImagesConfig


class Networks:
    """The models of a run on its device, new ones by the seed.

    ``teacher`` has ``tokenizer`` attached; ``average`` is the teacher's running average, ``ema``
    the generator's; ``stage1`` the generator as stage 1 leaves it.
    """

    ema: Any = None
    discriminator: nn.Module | None = None

    def __init__(self, config: ImagesConfig, num_classes: int, parallel: Parallel) -> None:
        self.parallel, self.config, device = parallel, config, parallel.device
        self.trains_tokenizer = not (config.source.tokenizer or config.source.teacher)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            loaded = self._load()
            self.tokenizer = self._tokenizer(loaded)
            classifier = config.classifier
            self.classifier = ImageClassifier(
                image_size=config.data.size,
                in_channels=config.data.channels,
                num_classes=num_classes,
                width=classifier.width,
                feature_dim=classifier.features,
            )
            if config.last != "tokenizer":
                self.teacher = self._teacher(loaded, num_classes)
                self.average = VARTeacher(**self.teacher.config)
            if config.last == "generator":
                self._one_step()
        for network in self.modules().values():
            network.to(device)
        if config.last == "generator":
            for network in self.modules().values():
                if isinstance(network, DD2Network):
                    network.teacher = self.teacher
                    parallel.prepare(network)

    def modules(self) -> dict[str, Any]:
        """What a saved state holds."""
        names = ["tokenizer", "classifier"]
        if self.config.last != "tokenizer":
            names += ["teacher", "average"]
        if self.config.last == "generator":
            names += ["guidance", "generator", "ema", "stage1"]
            names += ["dd1", "dd1_ema"] if self.config.dd1.steps else []
        if self.discriminator is not None:
            names.append("discriminator")
        return {name: getattr(self, name) for name in names}

    def start_stage1(self) -> None:
        """The guidance network's backbone is the teacher's."""
        own = self.guidance.backbone.state_dict()
        state = {k: v for k, v in self.teacher.state_dict().items() if k in own}
        self.parallel.load_model(as_module(self.guidance.backbone), state)

    def start_generator(self) -> None:
        """The generator and its average start from stage 1's network."""
        copy_weights(self.guidance, self.generator, self.ema, self.stage1)

    def start_dd1(self) -> None:
        """The baseline starts from stage 1's network too."""
        copy_weights(self.guidance, self.dd1, self.dd1_ema)

    def _load(self) -> VARTeacher | None:
        """The teacher to be fine-tuned, where there is one."""
        source = self.config.source
        if not source.teacher or self.config.last == "tokenizer":
            return None
        settings = parse_config(shlex.split(source.config), "source.config")
        teacher = load_teacher(source.teacher, source.tokenizer, self.config.seed, settings)
        if not isinstance(teacher, VARTeacher):
            raise ValueError(
                f"source.teacher: expected a VAR teacher, got a {type(teacher).__name__} in "
                f"{source.teacher}"
            )
        return teacher

    def _tokenizer(self, loaded: VARTeacher | None) -> VARTokenizer:
        config, data = self.config.tokenizer, self.config.data
        tokenizer: VARTokenizer
        if loaded is not None:
            tokenizer = loaded.attached()
        elif self.config.source.tokenizer:
            found = tokenizer_of(self.config.source.tokenizer)
            if not isinstance(found, VARTokenizer):
                raise ValueError(f"source.tokenizer: expected VAR's, got a {type(found).__name__}")
            tokenizer = found
        else:
            tokenizer = VARTokenizer(
                patch_nums=config.patch_nums,
                vocabulary=config.vocabulary,
                dimension=config.dimension,
                channels=config.channels,
                multipliers=config.multipliers,
                blocks=config.blocks,
                phis=config.phis,
                image_channels=data.channels,
                groups=config.groups,
            )
        for name, wanted, given in (
            ("size", tokenizer.image_size, data.size),
            ("channels", tokenizer.image_channels, data.channels),
        ):
            if wanted != given:
                raise ValueError(
                    f"data.{name}: expected the tokenizer's {wanted} (the last of "
                    f"tokenizer.patch_nums times 2 for every level but one), got {given}"
                )
        return tokenizer

    def _teacher(self, loaded: VARTeacher | None, num_classes: int) -> VARTeacher:
        """A new teacher, or the loaded one with an embedding for each of the images' classes.

        Where it knew other classes, all start as the null class was."""
        config = self.config.teacher
        if loaded is None:
            vocabulary, dimension = self.tokenizer.codebook.shape
            teacher = VARTeacher(
                patch_nums=self.tokenizer.patch_nums,
                vocabulary=vocabulary,
                dimension=dimension,
                num_classes=num_classes,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                shared_aln=config.shared_aln,
            )
        else:
            teacher = VARTeacher(**{**loaded.config, "num_classes": num_classes})
            state = dict(loaded.state_dict())
            if loaded.num_classes != num_classes:
                null = state["class_emb.weight"][-1:]
                state["class_emb.weight"] = null.repeat(num_classes + 1, 1)
            teacher.load_state_dict(state)
        teacher.tokenizer = self.tokenizer
        return teacher

    def _one_step(self) -> None:
        network = dataclasses.asdict(self.config.network)
        self.guidance = DD2Guidance.from_teacher(self.teacher, **network)
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        self.stage1 = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        if self.config.dd1.steps:
            self.dd1 = DD2Generator.from_guidance(self.guidance)
            self.dd1_ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
