"""Training with a mask held: as a function, and as the job of the finetune verb."""

from fastalter.finetuning.model import finetune_model

__all__ = ["finetune_model"]
