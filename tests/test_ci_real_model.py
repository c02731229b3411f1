"""SmolLM2 as ci/real_model.py writes it: transformers answers with it, and both forms are one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ci.real_model import Form

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.real
def test_both_forms_are_the_model(real_checkpoint: Callable[[Form], Path]) -> None:
    logits = []
    for form in ("phi3", "llama"):
        folder = real_checkpoint(form)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        prompt = tokenizer.apply_chat_template(
            QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            logits.append(model(**prompt).logits)
            (answer,) = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        assert "Paris" in tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    torch.testing.assert_close(logits[0], logits[1])
