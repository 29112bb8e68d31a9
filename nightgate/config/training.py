"""`[training]`: how the model is fine-tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nightgate.config.values import Duration, Section

ShippedMetric = Literal[
    "accuracy", "balanced_accuracy", "cohen_kappa", "f1", "mae", "matthews_correlation", "mse", "precision", "recall"
]
"""Metrics that come with the package."""
Precision = Literal["auto", "bf16", "fp16", "fp32"]
LOCAL_MODEL = ("package:", ".", "/", "~")
"""How a base model begins that is not of the hub."""


class Training(Section):
    """How the model is fine-tuned. The defaults are the published recipe."""

    base_model: str = Field(default="microsoft/Multilingual-MiniLM-L12-H384", min_length=1)
    """Hub name, folder, or `package:NAME/FOLDER` inside an installed Python package."""
    base_model_revision: str = ""
    """Branch, tag or commit of the base model on the hub."""
    epochs: int = Field(default=5, ge=1, le=1000)
    """Passes over the training rows."""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Examples in one optimiser step, on any hardware."""
    eval_batch_size: int = Field(default=16, ge=1, le=65_536)
    """Examples in one evaluation batch."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's decay, on all weights but biases and layer norms."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second moment decay."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """AdamW's denominator floor."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1e6)
    """Gradients are clipped to this norm; 0: not clipped."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    max_length: int = Field(default=128, ge=2, le=8192)
    """Texts are cut at this many tokens, special ones included."""
    dropout: Literal["model"] | Annotated[float, Field(ge=0, lt=1)] = "model"
    """Dropout of the hidden layers, the attention and the head; 'model' keeps the base model's own."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    class_weight: Literal["none", "balanced"] = "none"
    """How rows count in the training loss: alike, or such that all classes weigh the same."""
    early_stopping_patience: int = Field(default=0, ge=0, le=1000)
    """Epochs without a better validation F1 before training stops; 0: never."""
    precision: Precision = "auto"
    """'auto': bf16 where it is native, else fp32, on a GPU fp16 with loss scaling; the reason is stored."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Seed of the new head, the order of rows and dropout."""
    start_from: Literal["base", "champion"] = "base"
    """Train in full from the base model every night, or go on from the last version on new rows and old ones."""
    replay: float = Field(default=1.0, ge=0, le=100)
    """With start_from champion: old rows for each new one."""
    continued_rate: float = Field(default=0.1, gt=0, le=1)
    """With start_from champion: the rate of a night that goes on, as a share of `learning_rate`."""
    full_every: Duration = "15d"
    """With start_from champion: time after which a night trains in full again; '': only where it must."""
    max_train_rows: int = Field(default=0, ge=0)
    """At most this many training rows; 0: all."""
    keep: Literal["newest", "random"] = "newest"
    """Which rows stay when `max_train_rows` cuts."""
    metrics: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Further metrics by name or file, which are stored and decide nothing."""

    @model_validator(mode="after")
    def _revision_has_a_hub(self) -> Training:
        if self.base_model_revision and self.base_model.startswith(LOCAL_MODEL):
            raise ValueError(f"base_model_revision is for models of the hub, not for {self.base_model!r}")
        return self

    @model_validator(mode="after")
    def _metrics_have_names_of_their_own(self) -> Training:
        names = [metric_name(reference) for reference in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metrics has {', '.join(twice)} more than once")
        return self


def is_metric_file(reference: str) -> bool:
    """Whether one of `training.metrics` is a file, not a name."""
    return reference.endswith(".py") or reference.startswith((".", "/", "~"))


def metric_name(reference: str) -> str:
    """The name under which one of `training.metrics` is stored: without folder, owner and `.py`."""
    return reference.rstrip("/").rsplit("/", 1)[-1].removesuffix(".py")
