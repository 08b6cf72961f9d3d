"""The networks of a run over a user's images."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checkpoints.loader import tokenizer_of
from ...condition import condition_of
from ...metrics.image_classifier import ImageClassifier
from ...models import DD2Generator, DD2Guidance, LogitStudent
from ...models.families import FAMILIES, backbone_of, family_of
from ...models.family import FromImages, as_module
from ...models.network import BackboneNetwork
from ..parallel import Parallel
from ..samples.pool import PairPool
from ..settings import parse_config
from .stage2 import copy_weights
from .teachers import load_teacher

if TYPE_CHECKING:
    from .images import ImagesConfig


class Networks:
    """The models of a run on its device, new ones by the seed.

    ``teacher`` has ``tokenizer`` attached; ``average`` is the teacher's running average, ``ema``
    the generator's; ``stage1`` the generator as stage 1 leaves it. ``reader`` is what is distilled,
    the teacher or, of one that reads codes only, the copy of stage 0 that reads any vector. A logit
    student has the teacher itself, and no guidance network and ``stage1``.
    """

    generator: Any
    ema: Any = None
    discriminator: nn.Module | None = None
    adapting = False

    def __init__(self, config: ImagesConfig, num_classes: int, parallel: Parallel) -> None:
        self.parallel, self.config, device = parallel, config, parallel.device
        self.family = FAMILIES[config.family]
        assert self.family.images is not None, "the configuration sees to it"
        self.images: FromImages = self.family.images
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
                self.average = type(self.teacher)(**self.teacher.config)
            if config.last == "generator":
                if config.method == "logits":
                    self._logit_students()
                else:
                    self.adapting = not backbone_of(self.teacher)[1].adapted
                    self.reader = self.family.adapt(self.teacher, config.seed)
                    self._one_step()
                count, teacher = config.pairs.count, self.teacher
                dimension = teacher.codebook.shape[1]
                self.pool = PairPool(count, teacher.num_tokens, dimension, condition_of(teacher))
        for network in self.modules().values():
            network.to(device)
        if config.last == "generator":
            for network in self.modules().values():
                if isinstance(network, BackboneNetwork):
                    network.teacher = self.reader
                    parallel.prepare(network)

    def modules(self) -> dict[str, Any]:
        """What a saved state holds."""
        names = ["tokenizer", "classifier"]
        if self.config.last != "tokenizer":
            names += ["teacher", "average"]
        if self.config.last == "generator":
            names += ["generator", "ema"]
            names += ["guidance", "stage1"] if self.config.method == "dd2" else []
            names += ["reader"] if self.adapting else []
            names += ["pool"] if self.config.pairs.count else []
            names += ["dd1", "dd1_ema"] if self.config.dd1.steps else []
        if self.discriminator is not None:
            names.append("discriminator")
        return {name: getattr(self, name) for name in names}

    def start_reader(self) -> None:
        """Stage 0 starts from the trained teacher, its token table as an MLP of code vectors."""
        adapted = self.family.adapt(self.teacher, self.config.seed)
        self.reader.load_state_dict(adapted.state_dict())

    def start_stage1(self) -> None:
        """The guidance network's backbone is the teacher's, as stage 0 left it."""
        self.reader.requires_grad_(False)
        own = self.guidance.backbone.state_dict()
        state = {k: v for k, v in self.reader.state_dict().items() if k in own}
        self.parallel.load_model(as_module(self.guidance.backbone), state)

    def start_generator(self) -> None:
        """The generator and its average start from stage 1's network."""
        copy_weights(self.guidance, self.generator, self.ema, self.stage1)

    def start_student(self) -> None:
        """The logit student and its average start from the trained teacher."""
        student = self._logit_student(self.family.adapt(self.teacher, self.config.seed))
        for network in (self.generator, self.ema):
            self.parallel.load_model(network, student.state_dict())

    def start_dd1(self) -> None:
        """The baseline starts from stage 1's network too."""
        copy_weights(self.guidance, self.dd1, self.dd1_ema)

    def _load(self) -> Any:
        """The teacher to be fine-tuned, where there is one."""
        source = self.config.source
        if not source.teacher or self.config.last == "tokenizer":
            return None
        settings = parse_config(shlex.split(source.config), "source.config")
        teacher = load_teacher(source.teacher, source.tokenizer, self.config.seed, settings)
        self._check_family("teacher", teacher)
        return teacher

    def _check_family(self, name: str, model: Any) -> None:
        found = family_of(model).name
        if found != self.family.name:
            raise ValueError(
                f"source.{name}: expected one of the family {self.family.name}, got "
                f"{found}'s {type(model).__name__} in {getattr(self.config.source, name)}"
            )

    def _tokenizer(self, loaded: Any) -> Any:
        config, data = self.config, self.config.data
        if loaded is not None:
            found = loaded.tokenizer
        elif config.source.tokenizer:
            found = tokenizer_of(config.source.tokenizer)
            self._check_family("tokenizer", found)
        else:
            settings = dataclasses.asdict(config.tokenizer)
            return self.images.tokenizer(data.size, data.channels, settings)
        return self.images.fit(found, data.size, data.channels)

    def _teacher(self, loaded: Any, num_classes: int) -> Any:
        """A new teacher, or the loaded one with an embedding for each of the images' classes.

        Where it knew other classes, all start as the null class was."""
        if loaded is None:
            settings = dataclasses.asdict(self.config.teacher)
            teacher = self.images.teacher(self.tokenizer, num_classes, settings)
        else:
            teacher = type(loaded)(**{**loaded.config, "num_classes": num_classes})
            state = dict(loaded.state_dict())
            if loaded.num_classes != num_classes:
                null = state[self.images.classes][-1:]
                state[self.images.classes] = null.repeat(num_classes + 1, 1)
            teacher.load_state_dict(state)
        teacher.tokenizer = self.tokenizer
        return teacher

    def _logit_students(self) -> None:
        self.reader = self.teacher
        reads_noise = self.family.adapt(self.teacher, self.config.seed)
        self.generator, self.ema = (self._logit_student(reads_noise) for _ in range(2))
        self.ema.requires_grad_(False)

    def _logit_student(self, reads_noise: Any) -> LogitStudent:
        config = self.config
        return LogitStudent.from_teacher(
            reads_noise,
            flow_steps=config.logits.flow_steps,
            temperature=config.logits.temperature,
            exact=config.network.exact,
        )

    def _one_step(self) -> None:
        network = dataclasses.asdict(self.config.network)
        self.guidance = DD2Guidance.from_teacher(self.reader, **network)
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        self.stage1 = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        if self.config.dd1.steps:
            self.dd1 = DD2Generator.from_guidance(self.guidance)
            self.dd1_ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
