"""Make the embedded checkpoint: a small Llama, fitted to prompts and answers of the countdown task.

    python examples/countdown_sft/make_checkpoint.py OUTPUT

Deterministic: one thread, fixed seeds. Prints what it measures on held-out problems.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from progrpo.algorithms.confidence import answer_confidence, predicted_tokens, prompt_confidence
from progrpo.checkpoints.importer import write_checkpoint
from progrpo.data.countdown import (
    MAX_TARGET,
    PHRASINGS,
    CountdownProblem,
    generate,
    right_answers,
    split_problems,
)
from progrpo.evaluation.pass_at_k import pass_at_k
from progrpo.rewards import verify_batch
from progrpo.rewards.countdown import parse_expression

SEED = 0
STEPS = 300
BATCH_SIZE = 128
LEARNING_RATE = 1.5e-3
MAX_COMPLETION_TOKENS = 8
"""Seven tokens of "(1+2)*3" and the end of sequence."""

PAD, BOS, EOS, UNK, SYSTEM, USER, ASSISTANT = SPECIAL = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<system>",
    "<user>",
    "<assistant>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word, number, operator and parenthesis."""
    words = sorted({word for text in PHRASINGS for word in text.split() if "{" not in word})
    vocabulary = [*SPECIAL, *words, "+", "-", "*", "(", ")", *map(str, range(1, MAX_TARGET + 1))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[-+*():]"), behavior="isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=128,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the model with random weights."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=tokenizer.eos_token_id, **ids)
    return model


def distinct_answers(problem: CountdownProblem) -> list[str]:
    """Return the right answers as the verifier normalises them: no variety but the one that is counted."""
    parsed = map(parse_expression, right_answers(problem))
    return sorted({expression.text for expression in parsed if expression})


def fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Fit the model to whole conversations: prompts too, so that they become partly predictable."""
    rng = random.Random(SEED)  # noqa: S311 - sampling, not cryptography
    training, _ = split_problems()
    pairs = [(problem.prompts(), distinct_answers(problem)) for problem in training]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    model.train()
    for step in range(STEPS):
        conversations = [
            [{"role": "user", "content": rng.choice(prompts)}, {"role": "assistant", "content": rng.choice(answers)}]
            for prompts, answers in rng.choices(pairs, k=BATCH_SIZE)
        ]
        batch = tokenizer.apply_chat_template(conversations, return_tensors="pt", return_dict=True, padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_problems: int = 256, num_samples: int = 64
) -> dict[str, float]:
    """Sample held-out problems at temperature 1 and return the figures of the README."""
    torch.manual_seed(SEED)
    _, problems = generate(1, num_problems, SEED)
    numbers: dict[str, list[float]] = {}
    for prompt, answer in problems:
        prompt_ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        ids = model.generate(
            prompt_ids.expand(num_samples, -1),
            attention_mask=torch.ones(num_samples, prompt_ids.shape[1]),
            max_new_tokens=MAX_COMPLETION_TOKENS,
            top_k=0,
        )
        completions = ids[:, prompt_ids.shape[1] :]
        ended = (completions == tokenizer.eos_token_id).int()
        mask = (ended.cumsum(1) - ended) == 0
        full_mask = torch.cat([torch.ones_like(ids[:, : prompt_ids.shape[1]]), mask], dim=1)
        logprobs = model(ids, attention_mask=full_mask).logits[:, :-1].float().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)[:, prompt_ids.shape[1] - 1 :]
        sampled: Tensor = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
        on_prompt = predicted_tokens(torch.ones_like(prompt_ids))
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        verdicts = verify_batch([("countdown", answer, text) for text in texts])
        right = [verdict.answer for verdict in verdicts if verdict.correct]
        row = {
            **{f"pass@{k}": float(pass_at_k(num_samples, [len(right)], k)[0]) for k in (1, 8, 32, 64)},
            "distinct_correct": len(set(right)),
            "entropy": float((entropy * mask).sum() / mask.sum()),
            "prompt_confidence": float(prompt_confidence(sampled[:1, : prompt_ids.shape[1] - 1], on_prompt)),
            "answer_confidence": float(answer_confidence(sampled[:, prompt_ids.shape[1] - 1 :], mask).mean()),
            "completion_tokens": float(mask.sum(1).float().mean()),
            "truncated_frac": float((ended.sum(1) == 0).float().mean()),
        }
        for name, value in row.items():
            numbers.setdefault(name, []).append(value)
    return {name: round(sum(values) / len(values), 4) for name, values in numbers.items()}


def main() -> None:
    """Fit, write and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory to write the checkpoint artifact to; must not exist")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    fit(model, tokenizer)
    write_checkpoint(model, tokenizer, output, source="examples/countdown_sft/make_checkpoint.py")
    print(f"fitted in {time.monotonic() - started:.0f} s; 256 held-out problems x 64 samples at temperature 1:")
    print(json.dumps(measure(model, tokenizer), indent=2))


if __name__ == "__main__":
    main()
