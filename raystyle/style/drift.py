"""What was lost on the way to a style: how far the model moved on neutral text, and whether it still writes sanely.

`divergence` and `obedience` ask the model; the rest reads texts that it wrote.

B windows of a batch, T tokens, C a chunk of them, V vocabulary.
"""

import json
import re
import statistics
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raystyle import generation
from raystyle.style.likelihood import batches, places, predict, windows
from raystyle.style.neutral import CHAT_TASKS

# A loop: a unit of at most this many characters, at least so often in a row, and so many characters in all. Laughter,
# dashes and refrains of prose stay below.
MAX_UNIT_CHARS, MIN_REPEATS, MIN_LOOP_CHARS = 80, 4, 24
# A loop that does not reach a text's end counts when it is more than this share of the text.
LOOP_SHARE = 0.5
ANSWER_TOKENS, ANSWER_TEMPERATURE, ANSWER_TOP_P = 160, 0.7, 0.95
MALFORMED = frozenset({"Cc", "Cs", "Co", "Cn"})
WHITESPACE = re.compile(r"\s+")


def divergence(
    tuned: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int = 256, batch_size: int = 8
) -> float:
    """KL(adapter || base) in nats per token over the texts' tokens, summed over the whole vocabulary in fp64.

    How many nats a token the adapter's own draws would surprise the base by more than the adapter (Kullback & Leibler
    1951). Base and adapter are the same weights, with the adapter (PEFT, in eval mode, at whatever scale it has) on and
    off. 0 for an untrained adapter; 0 where there is nothing to predict.
    """
    import torch

    found = windows(tokenizer, texts, max_tokens)
    nats, count = 0.0, 0
    for numbers, ids_BT in batches(tuned, found, batch_size):
        with torch.inference_mode():
            tuned_BTV = predict(tuned, ids_BT)
            with tuned.disable_adapter():
                base_BTV = predict(tuned, ids_BT)
            for row, window in enumerate(found[number] for number in numbers):
                for place in places(window, bytes_each=8 * tuned_BTV.shape[-1]):
                    log_p_CV = tuned_BTV[row, place].double().log_softmax(-1)
                    difference_CV = log_p_CV - base_BTV[row, place].double().log_softmax(-1)
                    # Below 0 by rounding alone.
                    nats += float((log_p_CV.exp() * difference_CV).sum(-1).clamp(min=0).sum())
                count += len(window.ids) - window.first
    return nats / max(count, 1)


def loop_rate(texts: Sequence[str]) -> float:
    """Share of texts that end in the same unit over and over, or consist of it for more than half; see `loops`."""
    return statistics.fmean([loops(text) for text in texts] or [0])


def loops(text: str) -> bool:
    """Whether a unit of 1 to 80 characters stands at least 4 times in a row, over at least 24 characters, and this run
    reaches the text's end or is more than half of it. Whitespace is left out. Degeneration by loops: Holtzman et al. 2020.
    """
    text = WHITESPACE.sub("", text)
    codes_T = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    for unit in range(1, min(MAX_UNIT_CHARS, len(text) // MIN_REPEATS) + 1):
        # Where each character equals the one a unit before it, a run of n such places is a loop of n + unit characters.
        differs = np.flatnonzero(codes_T[unit:] != codes_T[:-unit])
        edges = np.concatenate([[-1], differs, [len(text) - unit]])
        lengths = np.diff(edges) - 1 + unit
        least = max(MIN_REPEATS * unit, MIN_LOOP_CHARS)
        if lengths[-1] >= least or lengths.max() >= max(least, LOOP_SHARE * len(text) + 1):
            return True
    return False


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Share of a text's n-grams of characters that the text has had before, averaged over texts: seq-rep-n of Welleck et
    al. 2020, of characters without whitespace.

    It rises with length, so only texts of about equal length compare. A text below n characters has none.
    """
    shares = []
    for text in (WHITESPACE.sub("", text) for text in texts):
        grams = [text[i : i + n] for i in range(len(text) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0)
    return statistics.fmean(shares or [0])


def malformed_share(texts: Sequence[str]) -> float:
    """Share of characters that no text should have: U+FFFD (bytes that are no character), control characters but line
    breaks and tabs, lone surrogates, private use, and code points that Python's Unicode does not assign.

    One U+FFFD at a text's end does not count: there the limit on tokens has cut a character.
    """
    characters = [character for text in texts for character in text.removesuffix("\ufffd")]
    bad = sum(
        character == "\ufffd" or (character not in "\n\r\t" and unicodedata.category(character) in MALFORMED)
        for character in characters
    )
    return bad / max(len(characters), 1)


def end_rate(finish_reasons: Sequence[str]) -> float:
    """Share of completions that ended by themselves (`stop`) before the limit on tokens."""
    return statistics.fmean([reason == "stop" for reason in finish_reasons] or [0])


def obedience(model: Any, tokenizer: Any, *, seed: int) -> dict[str, float] | None:
    """Share of chat tasks obeyed, by kind and over `all`, and share of answers that `ended` by themselves; None for a
    tokenizer without a chat template.

    Each task asks for something that a program can check (verifiable instructions, Zhou et al. 2023, IFEval). Answers
    are drawn with seeds made from `seed`, so that base and adapter meet the same luck.
    """
    if not tokenizer.chat_template:
        return None
    prompts = []
    for task in CHAT_TASKS:
        messages = [{"role": "user", "content": task.request}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template writes the special tokens itself.
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    samplings = [
        generation.Sampling(ANSWER_TOKENS, ANSWER_TEMPERATURE, ANSWER_TOP_P, seed=seed + number)
        for number in range(len(CHAT_TASKS))
    ]
    answers = generation.generate_all(model, tokenizer, prompts, samplings, batch_size=len(prompts))
    obeyed: dict[str, list[bool]] = {}
    for task, answer in zip(CHAT_TASKS, answers, strict=True):
        obeyed.setdefault(task.kind, []).append(is_obeyed(task.kind, task.expected, answer.text))
    shares = {kind: statistics.fmean(results) for kind, results in obeyed.items()}
    every = [result for results in obeyed.values() for result in results]
    return shares | {
        "all": statistics.fmean(every),
        "ended": end_rate([answer.finish_reason for answer in answers]),
    }


def is_obeyed(kind: str, expected: str, answer: str) -> bool:
    """Whether an answer does what a task of this kind asks for; see `CHECKS`."""
    return CHECKS[kind](answer.strip(), expected)


def _is_choice(answer: str, expected: str) -> bool:
    """One of the words offered (split by `|`), and nothing but a mark after it."""
    return answer.rstrip("。.！!") in expected.split("|")


def _is_list(answer: str, expected: str) -> bool:
    """So many lines, each with its number in order."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    numbers = [re.match(r"(\d+)\s*[.．、)）:：]\s*\S", line) for line in lines]
    return [match and match[1] for match in numbers] == [str(i + 1) for i in range(int(expected))]


def _is_json(answer: str, expected: str) -> bool:
    """A JSON object that has the key, in a code fence or not."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return isinstance(value, dict) and expected in value


def _is_sentence(answer: str, expected: str) -> bool:
    """So many sentences, each with its end mark, and nothing after the last."""
    sentences = re.findall(r"[^。！？!?]+[。！？!?]+[”」』）]*", answer)
    return len(sentences) == int(expected) and "".join(sentences) == answer


def _has_word(answer: str, expected: str) -> bool:
    return expected in answer


def _is_short(answer: str, expected: str) -> bool:
    """At most so many characters, and at least one."""
    return 0 < len(WHITESPACE.sub("", answer)) <= int(expected)


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "choice": _is_choice,
    "list": _is_list,
    "json": _is_json,
    "sentence": _is_sentence,
    "word": _has_word,
    "short": _is_short,
}
