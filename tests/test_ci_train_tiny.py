"""The embedded tiny checkpoint is what its trainer says it is, and answers what it never saw."""

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, Phi3ForCausalLM

from ci.tiny.arithmetic import addition
from ci.tiny.exchange import is_held_out
from ci.tiny.home import pick_state
from ci.tiny.quantised import GROUP, int4_values, int4_weights
from ci.tiny.score import greedy_answers, perplexity
from ci.tiny.text import Dialogue, Message, Source, chat_text, held_out_questions, held_out_text
from ci.tiny.tokenizer import STOP_TOKENS
from ci.tiny.train import CONFIG, Limit, rows_of_tokens, weighted_loss

TINY = Path(__file__).resolve().parents[1] / "export" / "tiny"
SPECIAL_IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<|endoftext|>": 755,
    "<|assistant|>": 756,
    "<|system|>": 757,
    "<|end|>": 758,
    "<|user|>": 759,
}
# Of Microsoft's published Phi-3-mini-4k-instruct, without the keys that name its remote code and library version.
MINI_4K_KEYS = (
    "architectures attention_bias attention_dropout bos_token_id embd_pdrop eos_token_id hidden_act hidden_size "
    "initializer_range intermediate_size max_position_embeddings model_type num_attention_heads num_hidden_layers "
    "num_key_value_heads original_max_position_embeddings pad_token_id resid_pdrop rms_norm_eps rope_scaling "
    "rope_theta sliding_window tie_word_embeddings torch_dtype use_cache vocab_size"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Phi3ForCausalLM:
    return Phi3ForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def questions() -> list[Dialogue]:
    lines = (TINY / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Dialogue(row["category"], (Message("user", row["question"]), Message("assistant", row["answer"])))
        for row in rows
    ]


def test_the_folder_is_small_and_has_the_config_keys_of_phi_3_mini() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000
    config = json.loads((TINY / "config.json").read_text())
    assert config == CONFIG
    assert set(config) == set(MINI_4K_KEYS.split())
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["hidden_size"] % 64 == config["intermediate_size"] % 64 == config["vocab_size"] % 32 == 0


def test_the_tensors_are_packed_and_named_as_in_phi_3() -> None:
    with safe_open(TINY / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
        dtypes = {file.get_slice(name).get_dtype() for name in shapes}
    assert dtypes == {"BF16"}
    assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == (384, 256)
    assert shapes["model.layers.0.mlp.gate_up_proj.weight"] == (1408, 256)
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (768, 256)
    assert len(shapes) == 6 * 4 + 3


def test_special_tokens_and_stops(tokenizer: Tokenizer) -> None:
    assert {token: tokenizer.token_to_id(token) for token in SPECIAL_IDS} == SPECIAL_IDS
    stops = GenerationConfig.from_pretrained(TINY).eos_token_id
    assert stops == [SPECIAL_IDS[token] for token in STOP_TOKENS] == [758, 755, 756]


def test_the_chat_template_is_the_text_it_was_trained_on(tokenizer: Tokenizer) -> None:
    transformers_tokenizer = AutoTokenizer.from_pretrained(TINY)
    messages = (Message("system", "Be brief."), Message("user", "What is 12+7? 😀"))
    plain = [{"role": message.role, "content": message.content} for message in messages]
    for open_turn in (True, False):
        text = chat_text(messages, open_turn=open_turn)
        assert (
            transformers_tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=open_turn) == text
        )
        ids = transformers_tokenizer.apply_chat_template(plain, add_generation_prompt=open_turn, return_dict=False)
        assert ids == tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|user|>\n42<|end|>\n<|assistant|>\n").tokens[1:5] == ["Ċ", "4", "2", "<|end|>"]


def test_text_is_the_same_every_time_and_the_split_is_disjoint() -> None:
    first, second = (list(islice(Source("7", held_out=False).dialogues(), 200)) for _ in range(2))
    assert first == second
    training = list(islice(Source("7", held_out=False).dialogues(), 3000))
    spoken = {message.content for dialogue in training for message in dialogue.messages}
    # "No" and "Yes" answers aside, an answer names its whole content.
    assert not spoken & {row.answer for row in questions()}
    source = Source("7", held_out=True)
    assert all(is_held_out(source.exchange(addition).key) for _ in range(50))
    rng = Random(7)
    assert 0.05 < sum(is_held_out(pick_state(rng).key) for _ in range(2000)) / 2000 < 0.15


def test_the_committed_held_out_files_are_what_the_script_makes() -> None:
    assert questions() == held_out_questions("0")
    assert (TINY / "held_out.txt").read_text(encoding="utf-8") == held_out_text("0", 70)


def test_rows_start_with_a_dialogue_and_answers_weigh_more(tokenizer: Tokenizer) -> None:
    rows = rows_of_tokens(tokenizer, Source("7", held_out=False))
    long, short = next(rows), next(rows)
    assert (long.shape, short.shape) == ((4, 512), (8, 256))
    assert set(torch.cat((long[:, 0], short[:, 0])).tolist()) <= {SPECIAL_IDS["<|user|>"], SPECIAL_IDS["<|system|>"]}
    user, assistant = SPECIAL_IDS["<|user|>"], SPECIAL_IDS["<|assistant|>"]
    ids = torch.tensor([[user, 10, assistant, 11]])
    logits = torch.zeros(1, 4, 768)
    logits[0, 2, 11] = 50.0  # the one answer token is known, the two others cost log(768) each at 0.3
    loss = weighted_loss(logits, ids, torch.tensor([user, assistant]), assistant)
    assert loss.item() == pytest.approx(torch.tensor(768.0).log().item() * 0.6 / 1.6)


def test_the_limit_is_steps_or_else_the_clock() -> None:
    assert Limit(steps=10, seconds=60).progress(5, elapsed_s=59) == 0.5
    assert Limit(steps=None, seconds=60).progress(5, elapsed_s=90) == 1.0


def test_int4_values_are_sixteen_steps_and_the_weights_come_back() -> None:
    weight = torch.randn(4, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    values = int4_values(weight)
    assert all(len(group.unique()) <= 16 for group in values.reshape(-1, GROUP))
    assert torch.allclose(values.abs().reshape(-1, GROUP).amax(1), weight.abs().reshape(-1, GROUP).amax(1))
    linear = torch.nn.Linear(64, 4)
    before = linear.weight.detach().clone()
    with int4_weights(linear):
        assert torch.equal(linear.weight, int4_values(before))
    assert torch.equal(linear.weight, before)


def test_held_out_questions_are_answered_exactly(model: Phi3ForCausalLM, tokenizer: Tokenizer) -> None:
    # Ten over all categories that it does answer; how many of all 300 it answers is in its model card.
    rows = questions()[1::30]
    assert len(rows) == 10
    assert greedy_answers(model, tokenizer, rows) == [row.answer for row in rows]
    prompt = torch.tensor([tokenizer.encode(chat_text(rows[0].prompt, open_turn=True)).ids])
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)[0]
    assert (
        tokenizer.decode(generated[prompt.shape[1] :].tolist(), skip_special_tokens=False) == rows[0].answer + "<|end|>"
    )


def test_held_out_text_is_predicted(model: Phi3ForCausalLM, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode((TINY / "held_out.txt").read_text(encoding="utf-8")).ids[:512]
    assert perplexity(model, ids) < 3
