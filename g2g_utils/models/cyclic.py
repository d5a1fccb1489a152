"""Films and reports as one language (AdaMatch-Cyclic, Chen et al., ACL 2024, section 3.3).

The vocabulary of one causal language model (GPT-NeoX, dolly's class) holds words, keys that part a
record, and the codes of the film tokenizer. A record asks for one of two answers:

    read  film codes  [hint: keywords]            answer  report  end
    draw  report      [hint: codes of patches]    answer  film codes  end

The keys are one token each here, and dolly's sentences in the published layout. What is generated
may be held to its form: exactly a film's codes, or words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LogitsProcessor, LogitsProcessorList

from g2g_utils.models.components import initialised

Direction = Literal["report", "film"]  # what is written
KEYS = ("read", "draw", "keywords", "patches", "answer", "end")
HINTED = 8  # codes of key patches at most, as far as a written report leaves room for them
IGNORED = -100  # label of tokens that are given
# dolly's layout, as the authors use it; "end" must stay one token
PUBLISHED = {
    "read": "Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGenerate free-text radiology reports for the entered chest X-ray image."
    "\n\nInput:\n",
    "draw": "Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGenerate a chest X-ray image that corresponds to the entered free-text "
    "radiology report.\n\nInput:\n",
    "keywords": "\n\nKeyword:\n",
    "patches": "\n\nReference:\n",
    "answer": "\n\n### Response:\n",
    "end": "### End",
}


class Record(NamedTuple):
    """A prompt and its answer, in ids; the answer ends with the key `end`."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Language:
    """Ids of words, keys and codes.

    Attributes:
        words: ids of the tokenizer are below it.
        keys: ids of each key of `KEYS`.
        base: id of code 0; codes follow.
        codes: entries of the codebook.
        cells: codes of a film.
        context: tokens of a record at most.
    """

    tokenizer: Any
    words: int
    keys: Mapping[str, tuple[int, ...]]
    base: int
    codes: int
    cells: int
    context: int

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return self.base + self.codes

    @property
    def end(self) -> int:
        """Id of the key that ends an answer."""
        return self.keys["end"][0]

    @property
    def pad(self) -> int:
        """Id that fills up a batch."""
        own = self.tokenizer.pad_token_id
        return self.end if own is None else int(own)

    def room(self, prompt: int) -> int:
        """Tokens of a report at most, so that a film can be asked for with it."""
        keys = sum(map(len, self.keys.values()))
        return max(2, self.context - max(prompt, self.cells + 1 + keys + HINTED))

    def words_of(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def codes_of(self, codes: Iterable[int]) -> list[int]:
        """Ids of codes.

        Raises:
            ValueError: a code outside the book.
        """
        found = [int(code) for code in codes]
        if wrong := [code for code in found if not 0 <= code < self.codes]:
            raise ValueError(f"code {wrong[0]} is not in the book of {self.codes}")
        return [self.base + code for code in found]

    def prompt(
        self, direction: Direction, given: str | Iterable[int], hints: Any = ()
    ) -> list[int]:
        """Prompt for a report of a film's codes, or for a film of a report.

        Args:
            given: codes of the film, or the report.
            hints: keywords for a report, codes of key patches for a film; none: no hint.

        Raises:
            ValueError: prompt and answer don't fit the context.
        """
        start, mark = ("read", "keywords") if direction == "report" else ("draw", "patches")
        asked = self.words_of(given) if isinstance(given, str) else self.codes_of(given)
        hint = self.words_of(", ".join(hints)) if direction == "report" else self.codes_of(hints)
        hint = [*self.keys[mark], *hint] if len(hints) else []
        found = [*self.keys[start], *asked, *hint, *self.keys["answer"]]
        room = self.cells + 1 if direction == "film" else 2
        if len(found) + room > self.context:
            raise ValueError(
                f"a prompt of {len(found)} tokens leaves no room for a {direction} in a context of "
                f"{self.context}: shorten the report or raise cyclic.context"
            )
        return found

    def film(self, answer: Sequence[int]) -> Tensor | None:
        """Codes [cells] of a whole answer; None if it is not exactly a film."""
        codes = torch.tensor(list(answer[:-1]), dtype=torch.long) - self.base
        ended = len(answer) > 0 and answer[-1] == self.end
        whole = ended and len(codes) == self.cells and bool((codes >= 0).all())
        return codes if whole else None

    def report(self, answer: Sequence[int]) -> str | None:
        """Text of a whole answer; None if it is empty, does not end, or holds other ids."""
        given = list(answer[:-1])
        if not given or answer[-1] != self.end or any(i >= self.words for i in given):
            return None
        return tidy(self.tokenizer.decode(given, skip_special_tokens=True))


def tidy(text: str) -> str:
    """A decoded text without spaces before marks and around hyphens."""
    return re.sub(r" ?- ?", "-", re.sub(r" ([.,;])", r"\1", text)).strip()


def language(tokenizer: Any, codes: int, cells: int, context: int) -> Language:
    """The small layout: every key is one new token."""
    words = len(tokenizer)
    keys = {name: (words + k,) for k, name in enumerate(KEYS)}
    return Language(tokenizer, words, keys, words + len(KEYS), codes, cells, context)


def published_language(tokenizer: Any, codes: int, cells: int, context: int) -> Language:
    """The published layout: dolly's sentences; codes follow the tokenizer's ids.

    Raises:
        ValueError: the tokenizer has no single token for the end of an answer.
    """
    keys = {
        name: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for name, text in PUBLISHED.items()
    }
    if len(keys["end"]) != 1:
        raise ValueError(f"{PUBLISHED['end']!r} is {len(keys['end'])} tokens: add it as one")
    words = len(tokenizer)
    return Language(tokenizer, words, keys, words, codes, cells, context)


# ---------------------------------------------------------------- the network


def build(words: Language, width: int, layers: int, heads: int, seed: int) -> GPTNeoXForCausalLM:
    """An untrained language model, without dropout."""
    config = GPTNeoXConfig(
        vocab_size=words.size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=words.context,
        bos_token_id=None,
        eos_token_id=words.end,
        pad_token_id=words.pad,
    )
    with initialised(seed):
        return GPTNeoXForCausalLM(config)


def extended(network: GPTNeoXForCausalLM, words: Language, rank: int, alpha: int) -> Any:
    """A published language model with rows for the codes, trained by LoRA.

    Embeddings and head are trained whole, for codes are new to them.

    Args:
        rank: of the low-rank updates; 0: all weights are trained.
    """
    network.resize_token_embeddings(words.size, mean_resizing=False)
    if not rank:
        return network
    from peft import LoraConfig, get_peft_model

    own = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["query_key_value", "dense"],
        modules_to_save=["embed_in", "embed_out"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(network, own)


def published_tokenizer(source: str, revision: str | None = None) -> Any:
    """A published tokenizer, in which the end of an answer is one token, as dolly has it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    tokenizer.add_special_tokens({"additional_special_tokens": [PUBLISHED["end"]]})
    return tokenizer


def with_updates(network: Any, folder: Path) -> Any:
    """An `extended` network with the low-rank updates, embeddings and head saved in a folder."""
    from peft import set_peft_model_state_dict

    state = load_file(folder / "adapter_model.safetensors")
    found: Any = set_peft_model_state_dict(network, state)
    if wrong := found.unexpected_keys:
        raise ValueError(f"{folder}: updates of another network, such as {wrong[0]}")
    return network


class Batch(NamedTuple):
    """Ids, mask of real tokens, and labels, [b, n] each; given tokens have the label -100."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def collate(records: Sequence[Record], pad: int) -> Batch:
    """Records filled up at the right."""
    longest = max(len(r.prompt) + len(r.answer) for r in records)
    ids = torch.full((len(records), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for k, (prompt, answer) in enumerate(records):
        start, stop = len(prompt), len(prompt) + len(answer)
        ids[k, :stop] = torch.tensor(prompt + answer)
        labels[k, start:stop] = torch.tensor(answer)
        mask[k, :stop] = 1
    return Batch(ids, mask, labels)


# ---------------------------------------------------------------- writing


class Form(LogitsProcessor):  # type: ignore[misc]
    """Holds an answer to its form: a film's codes and the end, or words that end in time."""

    def __init__(self, words: Language, direction: Direction, start: int, room: int) -> None:
        """`start`: tokens of the prompts; `room`: tokens of an answer, its end included."""
        self.cells = words.cells if direction == "film" else None
        self.start, self.room = start, room
        self.inside = torch.zeros(words.size, dtype=torch.bool)
        self.last = torch.zeros(words.size, dtype=torch.bool)
        self.last[words.end] = True
        if direction == "film":
            self.inside[words.base :] = True
        else:
            self.inside[: words.words] = True
            self.inside[words.tokenizer.all_special_ids] = False
            self.inside[words.end] = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with what the form forbids at -inf."""
        done = input_ids.shape[1] - self.start
        over = done >= (self.room - 1 if self.cells is None else self.cells)
        allowed = self.last if over else self.inside
        allowed = allowed.to(scores.device)
        if not done and self.cells is None:  # no empty report
            allowed = allowed & ~self.last.to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)


@torch.no_grad()
def write(
    network: Any,
    words: Language,
    prompts: Sequence[Sequence[int]],
    direction: Direction,
    *,
    constrained: bool = True,
    top_p: float | None = None,
    seed: int = 0,
    batch: int = 64,
) -> list[list[int]]:
    """Answers to prompts, each up to and with its end, or as far as there was room.

    Args:
        top_p: sample from the likeliest tokens of this total probability; None: take the likeliest.
        seed: of the sampling; a batch's draws depend on its place.
    """
    found: list[list[int]] = []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        longest = max(map(len, some))
        ids = torch.full((len(some), longest), words.pad)
        mask = torch.zeros_like(ids)
        for k, prompt in enumerate(some):  # filled up at the left: all answers start together
            ids[k, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[k, longest - len(prompt) :] = 1
        room = words.cells + 1 if direction == "film" else words.room(longest)
        form = Form(words, direction, longest, room)
        drawn: dict[str, Any] = {"do_sample": False}
        if top_p is not None:
            drawn = {"do_sample": True, "top_p": top_p, "top_k": 0, "temperature": 1.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 100_003 + first)
            written = network.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=room, eos_token_id=words.end,
                pad_token_id=words.pad, logits_processor=LogitsProcessorList([form] * constrained),
                **drawn,
            )[:, longest:]  # fmt: skip
        found += [_until(row, words.end) for row in written.tolist()]
    return found


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row
