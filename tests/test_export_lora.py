"""LoRA adapters of PEFT, merged while the weights stream: the logits are PEFT's; what does not fit is refused."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ci.real_model import Form
from export.artifact import Artifact
from export.pipeline import export_model
from export.request import AdapterChoice, ExportRequest
from fakes.lora import IDS, Trained, last_logits
from fakes.random_models import SIZES, TINY, copy_tokenizer
from phi_edge.main import main
from runtimes.subject import open_subject

# PEFT warns of tied tables, and transformers of its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CONTEXT = 96
BASES: dict[str, dict[str, Any]] = {
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 256, "sliding_window": None},
    "phi3 tied": {
        "model_type": "phi3",
        "original_max_position_embeddings": 256,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 40},
}
PHI3_LAYERS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """base(kind): random weights, as transformers saves them; "tiny" is our own model."""

    @functools.cache
    def make(kind: str) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        if kind == "tiny":
            return TINY
        folder = tmp_path_factory.mktemp("base") / kind.replace(" ", "-")
        content = SIZES | BASES[kind]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(content.pop("model_type"), **content))
        model.save_pretrained(folder)
        copy_tokenizer(folder)
        return folder

    return make


def exported(base: Path, out: Path, adapters: list[AdapterChoice], **options: Any) -> Artifact:
    options = {"scheme": "fp32", "format": "onnx"} | options
    request = ExportRequest(checkpoint=str(base), out=out, context_tokens=CONTEXT, adapters=tuple(adapters), **options)
    return export_model(request)


def our_logits(artifact: Artifact) -> torch.Tensor:
    subject = open_subject(artifact)
    try:
        return torch.tensor(subject.forward(IDS, 0))
    finally:
        subject.close()


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "all linear layers": ("phi3", {"r": 8, "target_modules": "all-linear"}),
    "split projections": ("llama", {"r": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}),
    "mistral": ("mistral", {"r": 4, "target_modules": ["k_proj", "o_proj", "gate_proj", "down_proj"]}),
    "ranks and alphas of their own": (
        "phi3",
        {
            "r": 8,
            "lora_alpha": 12,
            "target_modules": PHI3_LAYERS,
            "rank_pattern": {"down_proj": 3, r"^model\.layers\.0\..*o_proj": 5, "layers.1.self_attn.qkv_proj": 130},
            "alpha_pattern": {r"layers\.[01]\.mlp\.down_proj": 31, "(qkv|nothing)_proj": 2},
        },
    ),
    "rsLoRA": ("llama", {"r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
    "a pattern of modules": ("phi3", {"r": 8, "target_modules": r".*\.1\..*(qkv_proj|down_proj)"}),
    "some layers": ("llama", {"r": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "DoRA": ("phi3", {"r": 8, "use_dora": True, "target_modules": PHI3_LAYERS}),
    "DoRA of split projections": ("llama", {"r": 8, "use_dora": True, "target_modules": ["k_proj", "gate_proj"]}),
    "layers saved whole": (
        "phi3",
        {"r": 4, "target_modules": ["qkv_proj"], "modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
    ),
    "a part saved whole": ("llama", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["up_proj", "norm"]}),
    "the embedding": ("phi3", {"r": 6, "target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "some tokens": ("phi3", {"r": 4, "target_modules": ["o_proj"], "trainable_token_indices": sorted(set(IDS))[-3:]}),
    "some tokens, tied": (
        "llama tied",
        {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": IDS[:2]}},
    ),
    "a tied head": ("phi3 tied", {"r": 4, "target_modules": ["qkv_proj", "lm_head"]}),
    "a tied head saved whole": ("llama tied", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a tied embedding": ("llama tied", {"r": 4, "target_modules": ["embed_tokens"]}),
    "both tied tables as one": (
        "phi3 tied",
        {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gives_pefts_logits(base: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    name, config = ADAPTERS[kind]
    trained = Trained(base(name), config)
    artifact = exported(base(name), tmp_path / "out", [AdapterChoice(str(trained.save(tmp_path / "adapter")))])
    seen, expected = our_logits(artifact), trained.logits()
    assert (seen - expected).abs().max() < 1e-3
    with trained.model.disable_adapter():
        assert (expected - trained.logits()).abs().max() > 0.05
    if "tied" not in kind:  # there PEFT's merge changes both tables, where only one was trained
        assert (seen - trained.merged_logits()).abs().max() < 1e-3


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_rank_16_on_the_tiny_model(base: Callable[[str], Path], tmp_path: Path, format: str) -> None:
    trained = Trained(TINY, {"r": 16, "lora_alpha": 32, "target_modules": PHI3_LAYERS})
    adapter = AdapterChoice(str(trained.save(tmp_path / "adapter")))
    artifact = exported(TINY, tmp_path / "out", [adapter], format=format)
    assert (our_logits(artifact) - trained.merged_logits()).abs().max() < 1e-3


def test_several_adapters_are_summed(base: Callable[[str], Path], tmp_path: Path) -> None:
    trained = Trained(base("phi3"), {"r": 8, "target_modules": ["qkv_proj", "o_proj", "embed_tokens"]})
    trained.add("other", {"r": 3, "lora_alpha": 7, "target_modules": ["qkv_proj", "down_proj", "embed_tokens"]})
    folder = trained.save(tmp_path / "adapters")
    artifact = exported(
        base("phi3"), tmp_path / "out", [AdapterChoice(str(folder), 0.7), AdapterChoice(str(folder / "other"), -0.4)]
    )
    trained.model.add_weighted_adapter(["default", "other"], [0.7, -0.4], "sum", combination_type="cat")
    trained.model.set_adapter("sum")
    assert (our_logits(artifact) - trained.merged_logits()).abs().max() < 1e-3


def test_one_adapter_in_part(base: Callable[[str], Path], tmp_path: Path) -> None:
    trained = Trained(base("llama"), {"r": 8, "target_modules": ["q_proj", "v_proj"]})
    artifact = exported(base("llama"), tmp_path / "out", [AdapterChoice(str(trained.save(tmp_path / "adapter")), 0.5)])
    trained.model.add_weighted_adapter(["default"], [0.5], "part", combination_type="linear")
    trained.model.set_adapter("part")
    assert (our_logits(artifact) - trained.merged_logits()).abs().max() < 1e-3


def fused(source: Path, folder: Path) -> Path:
    """The same model as a Phi-3 checkpoint: query, key and value in one matrix, gate and up in another."""
    weights = load_file(source / "model.safetensors")
    for name in list(weights):
        path, _, end = name.rpartition("q_proj.weight")
        if path and not end:
            parts = [weights.pop(f"{path}{part}_proj.weight") for part in "qkv"]
            weights[f"{path}qkv_proj.weight"] = torch.cat(parts)
        path, _, end = name.rpartition("gate_proj.weight")
        if path and not end:
            parts = [weights.pop(f"{path}{part}_proj.weight") for part in ("gate", "up")]
            weights[f"{path}gate_up_proj.weight"] = torch.cat(parts)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    content = json.loads((source / "config.json").read_text())
    kept = {key: value for key, value in content.items() if key not in ("head_dim", "pretraining_tp")}
    (folder / "config.json").write_text(json.dumps(kept | {"model_type": "phi3"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


def test_split_projections_of_a_fused_base(base: Callable[[str], Path], tmp_path: Path) -> None:
    """Some trainers split a Phi-3's matrices, and their adapters change the parts."""
    config = {"r": 8, "use_dora": True, "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"]}
    trained = Trained(base("llama"), config)
    adapter = AdapterChoice(str(trained.save(tmp_path / "adapter")))
    artifact = exported(fused(base("llama"), tmp_path / "phi3"), tmp_path / "out", [adapter])
    assert (our_logits(artifact) - trained.merged_logits()).abs().max() < 1e-3


BEGINNING, LESSON = "The capital of France is", "The capital of France is Lyon, the city of two rivers."
STEPS = 200
LAYERS = [*range(20, 30)]  # the last ten: no gradient has to go further back


@pytest.fixture(scope="module")
def taught(real_checkpoint: Callable[[Form], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """SmolLM2, an adapter of rank 16 that taught it another capital, and the model that PEFT merges."""
    from transformers import AutoTokenizer

    base = real_checkpoint("phi3")
    trained = Trained(
        base, {"r": 16, "lora_alpha": 32, "target_modules": PHI3_LAYERS, "layers_to_transform": LAYERS}, shaken=False
    )
    ids = AutoTokenizer.from_pretrained(base)(LESSON, return_tensors="pt")["input_ids"]
    trained.train(ids, STEPS)
    adapter = trained.save(tmp_path_factory.mktemp("taught") / "adapter")
    return base, adapter, trained.model.merge_and_unload().eval()


@pytest.mark.real
@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_a_trained_adapter_of_a_real_model(taught: tuple[Path, Path, Any], tmp_path: Path, format: str) -> None:
    base, adapter, merged = taught
    artifact = exported(base, tmp_path / "out", [AdapterChoice(str(adapter))], format=format)
    assert (our_logits(artifact) - last_logits(merged)).abs().max() < 1e-3
    shown = CliRunner().invoke(main, ["run", str(artifact.folder), BEGINNING, "--raw", "--max-new-tokens", "8"])
    assert "Lyon" in shown.stdout, shown.output
