"""LoRA adapters as a training leaves them: PEFT's own, with random values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

IDS: list[int] = np.random.default_rng(0).integers(5, 500, 60).tolist()
LEARNT = 0.05  # nats a token: it knows the text by heart


class Trained:
    """A base with adapters, by PEFT: random ones, as a training could leave them."""

    def __init__(self, base: Path, config: Mapping[str, Any], *, shaken: bool = True) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model: Any = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **config))
        if shaken:
            self.shake("default")

    def add(self, name: str, config: Mapping[str, Any]) -> None:
        from peft import LoraConfig

        self.model.add_adapter(name, LoraConfig(task_type="CAUSAL_LM", **config))
        self.shake(name)

    def shake(self, adapter: str) -> None:
        """Random values into everything that an adapter trains."""
        torch.manual_seed(len(adapter))
        for name, parameter in self.model.named_parameters():
            if f".{adapter}" in name:
                scale = 0.3 if "magnitude" in name else 0.05
                parameter.data += scale * torch.randn_like(parameter)

    def train(self, ids: torch.Tensor, steps: int) -> None:
        """Teach it one text, `ids` int64 [1, tokens], in at most so many steps."""
        torch.manual_seed(0)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        self.model.train()
        for _ in range(steps):
            loss = self.model(ids, labels=ids).loss
            if float(loss) < LEARNT:
                break
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def save(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        return folder

    def logits(self) -> torch.Tensor:
        """After the last of IDS, computed beside the base's own weights."""
        return last_logits(self.model)

    def merged_logits(self) -> torch.Tensor:
        return last_logits(self.model.merge_and_unload())


@torch.inference_mode()
def last_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(torch.tensor([IDS])).logits[0, -1]
    return logits
