"""A language model completes prompts in batches as it does one by one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from synthalign.types import Reply
from synthalign.vlm import LLM

PROMPTS = ["Why?", "Describe the image in detail.", "How many chairs are there on the table?", "Say yes or say no."]


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose matrices 4-bit kernels take, with the turns of a text-only template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = tiny._byte_pair_tokenizer(special=["<|system|>", "<|user|>", "<|assistant|>"])
    ends = "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"
    tokenizer.chat_template = tiny.REWARD_TEMPLATE + ends
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=tiny.SPREAD,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def writer(folder: Path, **settings: Any) -> LLM:
    return LLM(model=str(folder), device="cpu", **({"max_new_tokens": 8} | settings))


def by_hand(llm: LLM, prompt: str, steps: int) -> str:
    """Greedy tokens by plain forwards without a cache."""
    ids = llm.tokenizer(llm.prompt(prompt), add_special_tokens=False, return_tensors="pt").input_ids
    length = ids.shape[1]
    for _ in range(steps):
        with torch.no_grad():
            token = llm.network(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], 1)
        if int(token) == llm.tokenizer.eos_token_id:
            break
    return llm.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()


def test_greedy_completions_are_those_of_plain_forwards_one_by_one(tiny_llama):
    llm = writer(tiny_llama, batch_size=3)
    replies = llm.complete(PROMPTS)
    assert [one.text for one in replies] == [by_hand(llm, prompt, 8) for prompt in PROMPTS]
    assert all(isinstance(one, Reply) and one.yes_margin is None for one in replies)
    assert len({one.text for one in replies}) == len(PROMPTS)


def test_the_prompt_is_the_models_own_template(tiny_llama):
    assert writer(tiny_llama).prompt("Why?") == "<s><|user|>Why?</s><|assistant|>"
    brief = writer(tiny_llama, system_prompt="Be brief.")
    assert brief.prompt("Why?") == "<s><|system|>Be brief.</s><|user|>Why?</s><|assistant|>"
    assert writer(tiny_llama, chat_template="{{ messages[0].content }}").prompt("Why?") == "Why?"


def test_a_sampled_completion_is_keyed_by_its_seed_alone(tiny_llama):
    llm = writer(tiny_llama, batch_size=4)
    together = llm.complete(PROMPTS * 2, range(8))
    assert len({one.text for one in together}) == 8
    alone = writer(tiny_llama, batch_size=1)
    assert alone.complete(PROMPTS[2:3], [6]) == together[6:7]
    assert alone.complete([*reversed(PROMPTS * 2)], [*reversed(range(8))]) == [*reversed(together)]


def test_a_completion_that_ends_by_itself_is_not_truncated(tiny_llama):
    llm = writer(tiny_llama)
    llm.network.generation_config.eos_token_id = None
    assert all(one.truncated for one in llm.complete(PROMPTS))
    first = llm.network(**llm.tokenizer(llm.prompt("Why?"), return_tensors="pt")).logits[0, -1].argmax()
    llm.network.generation_config.eos_token_id = [int(first), llm.tokenizer.eos_token_id]
    assert not llm.complete(PROMPTS)[0].truncated


def test_no_prompts_get_no_completions(tiny_llama):
    assert writer(tiny_llama).complete([]) == writer(tiny_llama).complete([], []) == []


DIGITS = [f" {digit}" for digit in range(7)]


def next_by_hand(llm: LLM, prompt: str, begun: str) -> torch.Tensor:
    """What comes behind a begun reply by one plain forward: no padding, tokens joined one by one."""
    ids = llm.tokenizer(llm.prompt(prompt) + begun, add_special_tokens=False).input_ids
    ids = torch.tensor([[*ids, llm.tokenizer(" ", add_special_tokens=False).input_ids[0]]])
    digits = [llm.tokenizer(str(digit), add_special_tokens=False).input_ids[0] for digit in range(7)]
    with torch.no_grad():
        return llm.network(input_ids=ids).logits[0, -1].log_softmax(-1)[digits]


def test_the_log_probs_of_what_comes_next_are_those_of_a_plain_forward(tiny_llama):
    llm = writer(tiny_llama, batch_size=3)
    assert llm.tokenizer.tokenize("Rating: 4")[-2:] == ["\u0120", "4"]  # the blank is a token of its own
    begun = [f"{'So ' * n}\nRating:" for n in range(len(PROMPTS))]
    got = llm.next_logps(PROMPTS, begun, DIGITS)
    expected = torch.stack([next_by_hand(llm, *row) for row in zip(PROMPTS, begun, strict=True)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.exp().sum(-1).max() < 1 and len({tuple(row) for row in got.tolist()}) == len(PROMPTS)
    assert llm.next_logps([], [], DIGITS).shape == (0, 7)


def test_what_comes_next_does_not_depend_on_the_models_own_generation_config(tiny_llama):
    llm = writer(tiny_llama)
    expected = llm.next_logps(PROMPTS, ["Rating:"] * 4, DIGITS)
    for name, value in (("repetition_penalty", 3.0), ("do_sample", True), ("temperature", 0.3), ("top_k", 2)):
        setattr(llm.network.generation_config, name, value)
    assert torch.equal(llm.next_logps(PROMPTS, ["Rating:"] * 4, DIGITS), expected)


def test_a_digit_that_takes_its_blank_with_it_is_one_token_too(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "joined")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    for digit in range(7):  # in place of merges learnt last, so that no token is new to the model
        merges.pop()
        joined = max((one for one in vocabulary if len(one) > 2), key=vocabulary.__getitem__)
        vocabulary[f"\u0120{digit}"] = vocabulary.pop(joined)
        merges.insert(0, ["\u0120", str(digit)])
    known = set(vocabulary)
    tokenizer["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= known]
    file.write_text(json.dumps(tokenizer))
    llm = writer(folder)
    assert llm.tokenizer.tokenize("Rating: 4")[-1] == "\u01204"
    ids = torch.tensor([llm.tokenizer(llm.prompt("Why?") + "Rating:", add_special_tokens=False).input_ids])
    with torch.no_grad():
        logps = llm.network(input_ids=ids).logits[0, -1].log_softmax(-1)
    expected = logps[[vocabulary[f"\u0120{digit}"] for digit in range(7)]]
    torch.testing.assert_close(llm.next_logps(["Why?"], ["Rating:"], DIGITS)[0], expected, rtol=1e-5, atol=1e-5)


def test_choices_of_several_tokens_are_refused(tiny_llama):
    for choices in ([" 1", " 10"], [" 1", " 1"], [" one", " two"]):
        with pytest.raises(ValueError, match=r"does not tell .* apart by one token: take another model"):
            writer(tiny_llama).next_logps(["Why?"], ["Rating:"], choices)


def test_logits_that_are_no_numbers_are_an_error(tiny_llama):
    llm = writer(tiny_llama)
    with torch.no_grad():
        llm.network.lm_head.weight[5] = torch.nan
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        llm.next_logps(["Why?"], ["Rating:"], DIGITS)


def test_mistakes_are_one_line(tiny_llama, tmp_path):
    for change in ({"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} .*, got "):
            writer(tiny_llama, **change)
    with pytest.raises(ValueError, match="no model folder"):
        writer(tmp_path / "nowhere")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(ValueError, match="refuses turns of system, user: no system role"):
        writer(tiny_llama, chat_template=refusing, system_prompt="Be brief.").prompt("Why?")
    folder = shutil.copytree(tiny_llama, tmp_path / "mute")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat template"):
        writer(folder).complete(["Why?"])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_model_says_nearly_what_it_was(quantization, tiny_llama):
    plain, packed = writer(tiny_llama), writer(tiny_llama, quantization=quantization)
    prompt = plain.tokenizer(plain.prompt(PROMPTS[1]), return_tensors="pt")
    with torch.no_grad():
        expected, got = (one.network(**prompt).logits[0, -1].log_softmax(-1) for one in (plain, packed))
    assert 0 < (got - expected).abs().mean() < (0.5 if quantization == "nf4" else 0.1)
    kinds = {name: type(part).__name__ for name, part in packed.network.named_modules() if "Linear" in str(type(part))}
    assert kinds.pop("lm_head") == "Linear"
    assert set(kinds.values()) == {{"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]}
    assert len(packed.complete(PROMPTS, range(4))) == 4
    packed.release()
    assert "network" not in packed.__dict__
