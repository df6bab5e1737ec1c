"""A run from files to saved language adapters: what the command line and the recipe do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.activation import activate, using
from adapterx.attachment import attach
from adapterx.composition import JsonValue, Stack
from adapterx.data import SentencePair
from adapterx.data.corpora import read_texts
from adapterx.data.coverage import coverage
from adapterx.encoders import load_encoder
from adapterx.errors import ConfigError
from adapterx.methods import methods_of
from adapterx.model import add, set_strength
from adapterx.registry import active_on
from adapterx.store import load, save
from adapterx.store.card import base_of
from adapterx.store.local import place_for
from adapterx.tasks.loading import load_for_task
from adapterx.training.language import start_from, train_language
from adapterx.training.language_settings import LanguageSettings, read_corpora
from adapterx.training.loop import Result
from adapterx.training.masked_head import load_masked_encoder
from adapterx.training.objectives.masked import perplexity
from adapterx.training.objectives.objective import Corpus
from adapterx.training.processes import accelerator_for
from adapterx.training.strength import (
    choose_strength,
    choose_strength_by_texts,
    hold_out,
    hold_out_text,
)
from adapterx.vocabulary import learn_vocabulary, tokenizer_of

__all__ = ["Trained", "run_languages"]

# Full strength pays only where the encoder knows next to nothing of the language.
_STRENGTH = 0.5
# Texts that say what new pieces are worth.
_READ = 1000


@dataclass(slots=True)
class Trained:
    """What a run made.

    Attributes:
        result: Losses and time.
        folders: Where each adapter is.
        facts: What its card says of the training.
        strengths: At which `adapterx.attach` stacks it.
        told: What was kept and left out of each file, in words.
    """

    result: Result
    folders: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    strengths: dict[str, float] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, JsonValue]:
        """Return an object with one for each adapter."""
        adapters: list[JsonValue] = [
            {
                "adapter": name,
                "folder": str(folder),
                "strength": self.strengths[name],
                "training": self.facts[name],
            }
            for name, folder in self.folders.items()
        ]
        return {"adapters": adapters}


def run_languages(settings: LanguageSettings, *, accelerator: Accelerator | None = None) -> Trained:
    """Read the data, train the adapters, choose their strength, save them.

    Args:
        settings: As `adapterx.training.language_settings.read_language_settings` returns them.
        accelerator: Accelerate's; None for a new one.

    Returns:
        What was made; every process has it, the first one wrote it.

    Raises:
        AdapterError: What reading, loading and training raise.
    """
    names, config = settings.names, settings.config
    corpora, told = read_corpora(settings)
    objectives = settings.build_objectives()
    masked = [one for one in settings.objectives if one != "align"]
    accelerator = accelerator or accelerator_for(config)
    set_seed(config.seed)  # the same fresh weights in every process

    # Some pairs choose the strength, some lines say how well pieces are guessed.
    held_pairs: dict[str, list[SentencePair]] = {}
    held_text: dict[str, list[str]] = {}
    for name, corpus in corpora.items():
        pairs, text = list(corpus.pairs), list(corpus.text)
        if settings.task and not settings.like:
            pairs, held_pairs[name] = hold_out(pairs, seed=config.seed)
        if masked:
            text, held_text[name] = hold_out_text(text, seed=config.seed)
        corpora[name] = Corpus(text=text, pairs=pairs)

    with accelerator.main_process_first():  # one process builds what is not there yet
        model, tokenizer = _encoder(settings, corpora, masked=bool(masked))
    places = {name: place_for(base_of(model), name, settings.store) for name in names.values()}
    for tag, name in names.items():
        methods = methods_of(settings.build_method())
        if settings.extend_vocab:
            texts = [*corpora[name].text, *(pair.target for pair in corpora[name].pairs)]
            vocabulary = learn_vocabulary(tokenizer, texts, size=settings.extend_vocab)
            add(model, name, (*methods, vocabulary), kind="language", language=tag)
            gain = _gain(model, tokenizer, name, tag, texts)
            told[f"{name}: pieces"] = f"{len(vocabulary.pieces):,} new; {gain}"
        else:
            add(model, name, methods, kind="language", language=tag)
    below = None
    if settings.below:
        attach(model, compose=settings.below, store=settings.store)
        below = active_on(model)
    if settings.start:
        start_from(model, list(places), _attached(model, settings.start, settings.store))

    def perplexities() -> dict[str, float]:
        found = {}
        for name, text in held_text.items():
            with using(model, name if below is None else Stack(below, name)):
                found[name] = perplexity(model, tokenizer, text, max_length=config.max_length)
        return found

    before = perplexities()
    result = train_language(
        model,
        tokenizer,
        corpora,
        objectives=objectives,
        below=below,
        config=config,
        accelerator=accelerator,
    )
    after = perplexities()

    made = Trained(result, told=told)
    for name, place in places.items():
        made.folders[name] = place
        made.strengths[name] = _STRENGTH if settings.strength is None else settings.strength
        made.facts[name] = {
            "pairs": len(corpora[name].pairs),
            "lines": len(corpora[name].text),
            "objectives": [one.facts for one in objectives],
            "steps": result.steps,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            "seconds": round(result.seconds, 1),
            **({"below": settings.below} if settings.below else {}),
            **({"start": settings.start} if settings.start else {}),
        }
        if name in before:
            made.facts[name]["perplexity"] = {"before": before[name], "after": after[name]}
    if accelerator.is_main_process:
        _save(made, model)
    if settings.task:
        accelerator.wait_for_everyone()
        _choose(made, settings, held_pairs, write=accelerator.is_main_process)
    return made


def _encoder(
    settings: LanguageSettings, corpora: Mapping[str, Corpus], *, masked: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not masked:
        return load_encoder(settings.model, head="none", dtype=settings.dtype)  # type: ignore[arg-type]  # it checks the word
    texts = [line for corpus in corpora.values() for line in corpus.text]
    texts += [pair.target for corpus in corpora.values() for pair in corpus.pairs]
    return load_masked_encoder(
        settings.model,
        texts,
        dtype=settings.dtype,  # type: ignore[arg-type]  # the same
        store=settings.store,
    )


def _gain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    tag: str,
    texts: Sequence[str],
) -> str:
    """Return in words what an adapter's own pieces make of its texts."""
    with using(model, name):
        own = tokenizer_of(model, tokenizer)
    before, after = (coverage(texts[:_READ], one, lang=tag, encoder="") for one in (tokenizer, own))
    return f"{before.fertility:.2f} tokens per {before.per} before, {after.fertility:.2f} with them"


def _attached(model: PreTrainedModel, name: str, store: str | None) -> str:
    """Put an adapter of the store on a model, and return its name there."""
    attach(model, compose=name, store=store)
    active = active_on(model)
    if not isinstance(active, str):
        raise ConfigError(f"start is {name!r}, which is {active}. Name one adapter.")
    return active


def _save(made: Trained, model: PreTrainedModel) -> None:
    for name, place in made.folders.items():
        set_strength(model, name, made.strengths[name])
        save(model, name, place, card={"training": made.facts[name]})


def _choose(
    made: Trained,
    settings: LanguageSettings,
    held: Mapping[str, Sequence[SentencePair]],
    *,
    write: bool,
) -> None:
    """Choose the strengths under a task, and keep them."""
    assert settings.task is not None
    likes = {
        settings.names[tag]: read_texts(files, field=settings.field)[0]
        for tag, files in settings.like.items()
    }
    model, tokenizer = load_for_task(
        settings.model,
        settings.task,
        store=settings.store,
        dtype=settings.dtype,  # type: ignore[arg-type]  # load_encoder checks the word
    )
    attach(model, task=settings.task, store=settings.store)
    task = active_on(model)
    for name, folder in made.folders.items():
        load(model, folder)
        activate(model, None)
        if name in likes:
            measure = "information"
            chosen = choose_strength_by_texts(
                model, tokenizer, name, task=str(task), texts=likes[name]
            )
        else:
            measure = "agreement"
            chosen = choose_strength(model, tokenizer, name, task=str(task), pairs=held[name])
        made.strengths[name], found = chosen
        made.facts[name][measure] = {f"{key:g}": value for key, value in found.items()}
    if write:
        _save(made, model)
