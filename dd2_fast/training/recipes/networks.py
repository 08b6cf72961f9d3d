"""The models of a run of the recipe for a loaded teacher."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...condition import condition_of
from ...models import DD2Generator, DD2Guidance, LogitStudent
from ...models.families import backbone_of
from ...models.family import Family, Teacher, Tokenizer, as_module
from ...models.network import BackboneNetwork
from ..parallel import Parallel
from ..samples.pool import PairPool
from ..samples.shards import sha256_of_weights
from ..settings import parse_config
from .keeping import load_stage1, stage1_settings
from .stage2 import copy_weights
from .teachers import load_teacher

if TYPE_CHECKING:
    from .distil import DistilConfig


class Networks:
    """The models of a run on its device, prepared for its processes; the trained ones start from
    the teacher and the seed.

    ``teacher`` is frozen; of one that reads codes only it is a copy that reads any vector, in
    float32 until stage 0 is over. ``source``, which draws samples, is the teacher as loaded. A
    logit student learns from the teacher as loaded, which reads its codes: there is no stage 0 and
    no ``guidance``, and ``pool`` has the pairs that are drawn before.
    """

    guidance: DD2Guidance
    generator: Any
    ema: Any
    pool: PairPool | None = None

    def __init__(self, config: DistilConfig, parallel: Parallel) -> None:
        self.parallel, self.config = parallel, config
        source = config.source
        settings = parse_config(shlex.split(source.config), "source.config")
        teacher = load_teacher(source.teacher, source.tokenizer, config.seed, settings)
        family, backbone = backbone_of(teacher)
        logits = config.method == "logits"
        self.adapting = not (backbone.adapted or logits)
        self.source: Teacher = teacher.to(parallel.device)
        self._source_sha256 = sha256_of_weights(as_module(teacher))  # before its precision changes
        if self.adapting:
            teacher = family.adapt(teacher, config.seed).requires_grad_(False)
        self.teacher: Teacher = teacher.to(parallel.device)
        tokenizer = self.teacher.tokenizer
        assert tokenizer is not None, "load_teacher sees to it"
        self.tokenizer: Tokenizer = tokenizer.to(parallel.device)
        made = self._logit_students(family) if logits else self._dd2()
        for network in made:
            network.teacher = self.teacher
            parallel.prepare(network)

    def _dd2(self) -> tuple[BackboneNetwork, ...]:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.guidance = DD2Guidance.from_teacher(
                self.teacher, **dataclasses.asdict(config.network)
            )
        self.generator = DD2Generator.from_guidance(self.guidance)
        self.ema = DD2Generator.from_guidance(self.guidance).requires_grad_(False)
        return self.guidance, self.generator, self.ema

    def _logit_students(self, family: Family) -> tuple[BackboneNetwork, ...]:
        config, teacher = self.config, self.teacher
        reads_noise = family.adapt(teacher, config.seed)
        settings: dict[str, Any] = dict(
            flow_steps=config.logits.flow_steps,
            temperature=config.logits.temperature,
            exact=config.network.exact,
        )
        self.generator, self.ema = (
            LogitStudent.from_teacher(reads_noise, **settings) for _ in range(2)
        )
        self.ema.requires_grad_(False)
        if config.logits.pairs:
            shape = teacher.num_tokens, teacher.codebook.shape[1]
            self.pool = PairPool(config.logits.pairs, *shape, condition_of(teacher))
            self.pool.to(self.parallel.device)
        return self.generator, self.ema

    def trained_modules(self) -> dict[str, nn.Module]:
        """What a saved state holds."""
        if self.config.method == "logits":
            names = ["generator", "ema", *(["pool"] if self.pool is not None else [])]
        else:
            names = ["guidance", "generator", "ema", *(["teacher"] if self.adapting else [])]
        return {name: getattr(self, name) for name in names}

    def freeze(self, done: Collection[str] | None = None) -> None:
        """Put the teacher into the run's precision, once nothing trains it any more.

        Args:
            done: stages that a resumed run has behind it.
        """
        waits = self.adapting and self.config.adaptation.steps > 0
        if waits and done is not None and "adaptation" not in done:
            return
        self.teacher.requires_grad_(False)
        if self.config.execution.precision == "bfloat16":
            self.teacher.to(torch.bfloat16)
            self.source.to(torch.bfloat16)

    def stage1_settings(self) -> dict[str, Any]:
        """What the end of stage 1 depends on."""
        return stage1_settings(self.config, self._source_sha256, self.adapting)

    def own_tokenizer(self) -> nn.Module | None:
        """The tokenizer that has no file of its own and goes into the generator's."""
        return None if self.config.source.tokenizer else as_module(self.tokenizer)

    def start_stage1(self) -> None:
        """The guidance network's backbone is the teacher's, as stage 0 left it."""
        self.freeze()
        if self.adapting:
            source, backbone = backbone_of(self.teacher)[1], self.guidance.backbone
            names = backbone.state_dict().keys()
            own = {k: v.float() for k, v in source.state_dict().items() if k in names}
            self.parallel.load_model(as_module(backbone), own)

    def start_generator(self) -> None:
        """Generator and average start from stage 1's network, of this run or another."""
        if self.config.start:
            load_stage1(self.config.start, self, self.stage1_settings())
        copy_weights(self.guidance, self.generator, self.ema)
