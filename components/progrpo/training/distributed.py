"""Weights, optimizer and schedule of a run, whole on the first rank."""

from __future__ import annotations

from typing import Any


def training_state(trainer: Any) -> dict[str, Any]:
    """Return what an update changes."""
    model = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return {
        "model": model,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
    }


def load_training_state(trainer: Any, state: dict[str, Any]) -> None:
    """Put back what :func:`training_state` returned."""
    import torch

    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if p.requires_grad:
                p.copy_(state["model"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["schedule"])
