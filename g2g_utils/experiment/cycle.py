"""AdaMatch-Cyclic from a profile: codes, hints, trainings, and what they write and draw."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import GPTNeoXForCausalLM

from g2g_utils import runs
from g2g_utils.bench import drawn, fidelity, report_scores, retrieval
from g2g_utils.config import Config, ConfigError, CyclicSettings
from g2g_utils.data import sources
from g2g_utils.data.record import Example
from g2g_utils.experiment import apart, parts
from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.recipes import cyclic_settings, hints_from
from g2g_utils.methods import adamatch
from g2g_utils.models import cyclic, vq
from g2g_utils.models.adamatch import Patches
from g2g_utils.models.components import initialised
from g2g_utils.training import cyclic as training
from g2g_utils.training import hints
from g2g_utils.training.adamatch import Captions, read_captions
from g2g_utils.training.cyclic import Told

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")
PRISTINE = 500  # training films that say what a good film looks like


# ---------------------------------------------------------------- codes


def encode(config: Config, folder: Path) -> dict[str, Any]:
    """Codes [n, cells] of the films of all splits: codes.npz."""
    tokenizer = vq.load(ensure(config, "vq"))
    found = {}
    for split in SPLITS:
        starts = range(0, _count(config, split), 256)
        rows = [vq.encode(tokenizer, _films(config, split, k)) for k in starts]
        found[split] = torch.cat(rows).numpy().astype(np.uint16)
    with runs.atomic(folder / "codes.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **found)
    return {"metrics": {"codes_used": float(len(np.unique(found["train"])))}}


def _count(config: Config, split: str) -> int:
    if split == "train":
        return len(parts.training_images(config))
    return len(sources.examples(config, split))


def _films(config: Config, split: str, start: int = 0, count: int = 256) -> Tensor:
    """Films [n, 1, S, S] of a split in [0, 1]."""
    if split == "train":
        return parts.tensor_images(config, slice(start, start + count))
    some = sources.examples(config, split)[start : start + count]
    return torch.from_numpy(np.stack([e.load(config.image_size) for e in some]))[:, None].float()


def codes(config: Config, split: str) -> hints.Rows:
    """Codes [n, cells] of the films of a split."""
    with np.load(ensure(config, "codes") / "codes.npz") as file:
        return np.asarray(file[split], np.int64)


def reports(config: Config, split: str) -> list[str]:
    """Reports of a split, in the films' order."""
    if split == "train":
        return parts.training_texts(config).captions
    return [example.phrase for example in sources.examples(config, split)]


# ---------------------------------------------------------------- hints


class Finder(NamedTuple):
    """What finds the key patches of a report: a network, its words, and the visual codebook."""

    joint: adamatch.Joint
    words: str
    book: hints.VisualBook

    def captions(self, texts: list[str]) -> Captions:
        """Tokens of reports."""
        return read_captions(self.joint.tokenizer, texts, self.joint.max_length, self.words)


def make_hints(config: Config, folder: Path) -> dict[str, Any]:
    """Keywords of all films and key patches of all reports: hints.json; the books: book.npz."""
    settings, item = cyclic_settings(config), hints_from(config)
    joint = adamatch.load(ensure(config, f"adamatch/{item}"), config.text.max_length)
    assert config.adamatch is not None
    asked = config.adamatch.arms[item.rpartition("-s")[0]].words
    texts = parts.training_texts(config)
    apart.check_training(config, texts)
    patches = {split: _patches(config, joint, split) for split in SPLITS}
    words = hints.textual_book(
        joint.tokenizer, texts.captions, hints.known_groups(texts.captions), settings.per_group
    )
    vectors = hints.word_vectors(joint.network, joint.tokenizer, words, joint.max_length)
    scores = {s: hints.keyword_scores(p.vectors, vectors) for s, p in patches.items()}
    usual = scores["train"].mean(0) if settings.centred else 0.0
    captions = read_captions(joint.tokenizer, texts.captions, joint.max_length, asked)
    book = hints.visual_book(
        joint.network, patches["train"], captions, codes(config, "train"),
        pairs=settings.book_pairs, words=settings.pair_words,
        margin=0.25 / joint.network.shape.grid,
    )  # fmt: skip
    finder = Finder(joint, asked, book)
    found = {
        split: {
            "keywords": hints.keywords(scores[split] - usual, words, settings.keywords),
            "keypatches": _keypatches(settings, finder, reports(config, split), split == "train"),
        }
        for split in SPLITS
    }
    _write_book(book, folder)
    runs.write_json(folder / "hints.json", {"words": words, **found})
    return {"metrics": {"keywords": float(len(words)), "keypatches": float(len(book.codes))}}


def _patches(config: Config, joint: adamatch.Joint, split: str) -> Patches:
    starts = range(0, _count(config, split), 256)
    found = [retrieval.patches(joint.network, _films(config, split, k)) for k in starts]
    return Patches(*(torch.cat(part) for part in zip(*found, strict=True)))


def _keypatches(
    settings: CyclicSettings, finder: Finder, texts: list[str], training: bool = False
) -> list[list[int]]:
    return hints.keypatches(
        finder.joint.network, finder.book, finder.captions(texts),
        per_word=settings.word_patches, top=settings.keypatches, training=training,
    )  # fmt: skip


def _write_book(book: hints.VisualBook, folder: Path) -> None:
    lengths = np.array([len(own) for own in book.codes])
    flat = np.array([code for own in book.codes for code in own], np.uint16)
    with runs.atomic(folder / "book.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, vectors=book.vectors.numpy().astype(np.float32), lengths=lengths, codes=flat,
            owners=book.owners.numpy(),
        )  # fmt: skip


def finder(config: Config) -> Finder:
    """What finds key patches, as the profile's hints were found."""
    item = hints_from(config)
    joint = adamatch.load(ensure(config, f"adamatch/{item}"), config.text.max_length)
    with np.load(ensure(config, "hints") / "book.npz") as file:
        ends = np.cumsum(file["lengths"])
        taken = tuple(tuple(map(int, own)) for own in np.split(file["codes"], ends[:-1]))
        vectors, owners = torch.from_numpy(file["vectors"]), torch.from_numpy(file["owners"])
    assert config.adamatch is not None
    words = config.adamatch.arms[item.rpartition("-s")[0]].words
    return Finder(joint, words, hints.VisualBook(vectors, taken, owners))


def told(config: Config, kind: str, split: str) -> Told:
    """Films, reports and hints of a split, as the arm `kind` sees them.

    Raises:
        ConfigError: true hints are asked for and the films' facts are unknown.
    """
    texts, films = reports(config, split), codes(config, split)
    if kind == "none":
        return Told(films, texts, [()] * len(texts), [()] * len(texts))
    if kind == "oracle":
        return Told(films, texts, *_true_hints(config, split, films))
    found = runs.read_json(ensure(config, "hints") / "hints.json")[split]
    both = [found["keywords"], found["keypatches"]]
    if kind == "shuffled":
        both = [hints.shuffled(rows, config.data.seed) for rows in both]
    return Told(films, texts, both[0], both[1])


def _true_hints(config: Config, split: str, films: hints.Rows) -> Any:
    facts, settings = parts.facts(config, split), cyclic_settings(config)
    if facts is None:
        raise ConfigError("cyclic.hints: oracle needs films whose facts are known: leave it out")
    boxes = [
        hints.true_patches(film, own, config.image_size, settings.keypatches)
        for film, own in zip(films, _boxes(config, split), strict=True)
    ]
    return [hints.true_keywords(own, settings.keywords) for own in facts], boxes


def _boxes(config: Config, split: str) -> list[list[Any]]:
    """Boxes of all findings of each film of a split."""
    found: list[list[Any]] = [[] for _ in range(_count(config, split))]
    if split == "train":
        for region in parts.training_texts(config).regions:
            found[region["image"]] += region["boxes"]
        return found
    for own, example in zip(found, sources.examples(config, split), strict=True):
        own += [box for region in example.regions for box in region.boxes]
    return found


# ---------------------------------------------------------------- the language model


def language(config: Config) -> cyclic.Language:
    """Words of the profile's tokenizer, or of the published model's; keys and codes."""
    settings = cyclic_settings(config)
    cells = (config.image_size // settings.vq.pixels) ** 2
    sizes = settings.vq.codes, cells, settings.context
    if settings.pretrained:
        tokenizer = cyclic.published_tokenizer(settings.pretrained, settings.revision)
        return cyclic.published_language(tokenizer, *sizes)
    tokenizer, _ = parts.text_encoder(config, settings.words)
    return cyclic.language(tokenizer, *sizes)


def train(
    config: Config, kind: str, seed: int, folder: Path, steps: int | None = None
) -> dict[str, Any]:
    """Train the language model of one kind of hints; `steps` shortens it."""
    settings, words = cyclic_settings(config), language(config)
    apart.check_training(config, parts.training_texts(config))
    network = _untrained(settings, words, seed)
    return training.train(
        network, words, told(config, kind, "train"), settings, folder,
        seed=seed, steps=steps, name=f"AdaMatch-Cyclic, hints {kind}, seed {seed}",
    )  # fmt: skip


def _untrained(settings: CyclicSettings, words: cyclic.Language, seed: int) -> Any:
    """A new language model, or a published one with rows for the codes."""
    if not settings.pretrained:
        return cyclic.build(words, settings.width, settings.layers, settings.heads, seed)
    network = GPTNeoXForCausalLM.from_pretrained(settings.pretrained, revision=settings.revision)
    with initialised(seed):
        return cyclic.extended(network, words, settings.lora_rank, settings.lora_alpha)


class Writer(NamedTuple):
    """A trained language model with the tokenizer of its films."""

    network: Any
    words: cyclic.Language
    vq: Any
    kind: str
    seed: int

    def reports(self, films: Any, keywords: Any, constrained: bool = True) -> list[list[int]]:
        """Answers to films' codes: reports, the likeliest words."""
        pairs = zip(films, keywords, strict=True)
        prompts = [self.words.prompt("report", *one) for one in pairs]
        return cyclic.write(
            self.network, self.words, prompts, "report", constrained=constrained, seed=self.seed
        )

    def films(
        self, texts: Any, keypatches: Any, top_p: float, constrained: bool = True
    ) -> list[list[int]]:
        """Answers to reports: films' codes, sampled."""
        pairs = zip(texts, keypatches, strict=True)
        prompts = [self.words.prompt("film", *one) for one in pairs]
        return cyclic.write(
            self.network, self.words, prompts, "film", constrained=constrained, top_p=top_p,
            seed=self.seed,
        )  # fmt: skip


def writer(config: Config, kind: str, seed: int) -> Writer:
    """The language model `cyclic/KIND-sSEED`."""
    place = ensure(config, f"cyclic/{kind}-s{seed}")
    settings, words = cyclic_settings(config), language(config)
    if settings.pretrained and settings.lora_rank:
        network = cyclic.with_updates(_untrained(settings, words, seed), place)
    else:
        network = GPTNeoXForCausalLM.from_pretrained(place, dtype=torch.float32)
    return Writer(network.eval(), words, vq.load(ensure(config, "vq")), kind, seed)


# ---------------------------------------------------------------- evaluation


class Written(NamedTuple):
    """What a language model made of the test films and reports."""

    reports: list[str]
    drawn: dict[str, hints.Rows]  # codes [n, cells] by the report they were drawn from
    free: dict[str, float]  # share of whole answers without constraint, in percent
    held: dict[str, float]  # the same when held to the form


def write(config: Config, model: Writer, given: Told) -> Written:
    """Reports of the test films, and films of these reports ("cycle") and of the true ones."""
    top_p, count = cyclic_settings(config).top_p, config.fidelity.samples
    free: dict[str, float] = {}
    held: dict[str, float] = {}
    texts: list[str] = []
    for share, constrained in ((free, False), (held, True)):
        answers = model.reports(given.codes, given.keywords, constrained)
        found = [model.words.report(answer) for answer in answers]
        share["report"] = 100 * float(np.mean([text is not None for text in found]))
        texts = [text or "" for text in found]
    films = {}
    for source, some in (("true report", list(given.reports)), ("cycle", texts)):
        patches = given.keypatches
        if model.kind == "own" and source == "cycle":
            patches = _keypatches(cyclic_settings(config), finder(config), some)
        rows = [k % len(some) for k in range(count)]
        answers = model.films([some[k] for k in rows], [patches[k] for k in rows], top_p)
        whole = [model.words.film(answer) for answer in answers]
        held[source] = 100 * float(np.mean([film is not None for film in whole]))
        films[source] = torch.stack([film for film in whole if film is not None]).numpy()
        loose = model.films(some, patches, top_p, constrained=False)
        whole = [model.words.film(answer) for answer in loose]
        free[source] = 100 * float(np.mean([film is not None for film in whole]))
    return Written(texts, films, free, held)


def evaluate(config: Config, kind: str, seed: int, folder: Path) -> dict[str, Any]:
    """Scores of one language model: reports.csv, films.csv and codes of drawn films, films.npz."""
    examples, facts = sources.examples(config, "test"), parts.facts(config, "test")
    model, given = writer(config, kind, seed), told(config, kind, "test")
    made = write(config, model, given)
    rows = report_scores.table(
        made.reports, list(given.reports), [e.subject_id for e in examples], facts
    )
    films = {
        source: vq.decode(model.vq, torch.from_numpy(found)) for source, found in made.drawn.items()
    }
    asked = {"true report": list(given.reports), "cycle": made.reports}
    drawn_rows = film_rows(config, films, asked, examples)
    for name, table in (("reports", rows), ("films", drawn_rows)):
        with runs.atomic(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    with runs.atomic(folder / "films.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, **{k.replace(" ", "_"): v.astype(np.uint16) for k, v in made.drawn.items()}
        )
    valid = {f"whole {where}, {how}": round(value, 2)
             for how, part in (("free", made.free), ("held", made.held))
             for where, value in part.items()}  # fmt: skip
    means = {c: round(float(rows[c].mean()), 4) for c in SCORED if c in rows and rows[c].count()}
    return {"metrics": means | valid, "sets": {k: film_set(config, v) for k, v in films.items()}}


SCORED = ("rouge_l", "meteor", "finding_f1", "side", "zone", "false_denials")


def film_rows(
    config: Config,
    films: dict[str, Tensor],
    asked: dict[str, list[str]],
    examples: list[Example],
) -> pd.DataFrame:
    """One row per drawn film: F1 of the findings that the classifier sees, and those asked for.

    `other` is the same against the next film's report, by which chance can be told.
    """
    classifier = fidelity.load_classifier(ensure(config, "classifier"))
    found = []
    for source, images in films.items():
        texts = [asked[source][k % len(examples)] for k in range(len(images))]
        wanted = [report_scores.read(text).findings for text in texts]
        seen = drawn.findings(classifier, images)
        own: dict[str, Any] = {
            "source": source,
            "subject_id": [examples[k % len(examples)].subject_id for k in range(len(images))],
            "agreement": drawn.overlap(seen, wanted),
            "other": drawn.overlap(seen, [*wanted[1:], wanted[0]]),
        }
        found.append(pd.DataFrame(own))
    return pd.concat(found, ignore_index=True)


def film_set(config: Config, images: Tensor) -> dict[str, float]:
    """Fréchet distances and NIQE of this world of a set of films [n, 1, S, S]."""
    found = {}
    for name, network in parts.feature_networks(config).items():
        real = fidelity.moments(parts.reference_features(config, network))
        own = fidelity.moments(fidelity.extract(network, images))
        found[f"frechet, {name}"] = round(fidelity.frechet_of_moments(own, real), 4)
    good = drawn.statistics_of(_films(config, "train", 0, PRISTINE)[:, 0].numpy().astype(float))
    found["niqe of this world"] = round(drawn.niqe(images[:, 0].numpy().astype(float), good), 4)
    return found


def references(config: Config) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Rows and sets of films that no language model drew: the test films, and these as codes."""
    examples = sources.examples(config, "test")
    rows = [k % len(examples) for k in range(max(config.fidelity.samples, len(examples)))]
    real = _films(config, "test", 0, len(examples))[rows]
    tokens = vq.load(ensure(config, "vq"))
    through = vq.decode(tokens, torch.from_numpy(codes(config, "test"))[rows])
    films = {"real film": real, "real film as codes": through}
    asked = dict.fromkeys(films, reports(config, "test"))
    sets = {name: film_set(config, images) for name, images in films.items()}
    return film_rows(config, films, asked, examples), sets


def without_skill(config: Config) -> dict[str, pd.DataFrame]:
    """Tables of reports that need no reading: the most frequent, and the nearest film's."""
    texts, examples = parts.training_texts(config), sources.examples(config, "test")
    films = np.stack([example.load(config.image_size) for example in examples])
    frequent = report_scores.most_frequent(texts.captions)
    near = report_scores.nearest(films, parts.training_images(config))
    written = {
        "most frequent report": [frequent] * len(examples),
        "nearest film's report": [texts.captions[k] for k in near],
    }
    references, patients = reports(config, "test"), [e.subject_id for e in examples]
    facts = parts.facts(config, "test")
    return {
        name: report_scores.table(some, references, patients, facts)
        for name, some in written.items()
    }


def tables(config: Config, name: str = "reports") -> pd.DataFrame:
    """Rows of all language models (`reports` or `films`), with `hints` and `seed`."""
    from g2g_utils.experiment.product import KINDS

    found = []
    for item in KINDS["cycle"].items(config):
        kind, seed = re.fullmatch(r"(.+)-s(\d+)", item).groups()  # type: ignore[union-attr]
        rows = pd.read_csv(ensure(config, f"cycle/{item}") / f"{name}.csv", keep_default_na=False,
                           na_values=[""])  # fmt: skip
        found.append(rows.assign(hints=kind, seed=int(seed)))
    return pd.concat(found, ignore_index=True)
