"""A language's own pieces: learning them from text, the tokenizer that reads them, their start.

An adapter with a `Vocabulary` keeps pieces and rows; the tokenizer is made from them and from the
base's, which stays as it is. Which tokenizer reads a text follows from what is active.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import json
import re
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedTokenizerBase

from adapterx.composition import Axis
from adapterx.errors import CompositionError, ConfigError, DataError
from adapterx.methods import Vocabulary, VocabularyModule
from adapterx.registry import adapter_modules, plan_on, registry_of, unwrap
from adapterx.routing import Choice, variants_of
from adapterx.steps import Act

__all__ = [
    "encoded",
    "encodings",
    "learn_vocabulary",
    "start_rows",
    "tokenizer_of",
    "tokenizers_of",
]

# Rows of rarer pieces would hardly be trained.
_LEAST: Final = 5
_SPACE: Final = "▁"
# What a model with byte fallback makes of a character that is no piece.
_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
# By how much a Unigram model likes a new piece better than its parts, in nats: less than other
# ways to cut a word usually differ by, so that new pieces stand where their parts stood.
_BONUS: Final = 1.0

# The id of the first new piece, and each piece's parts.
_Own: TypeAlias = tuple[int, tuple[tuple[str, ...], ...]]
_Pair: TypeAlias = tuple[str, str]

# What was made of each tokenizer, and of which one each is; both as long as somebody has it.
_MADE: weakref.WeakKeyDictionary[Any, dict[_Own, Any]] = weakref.WeakKeyDictionary()
_BASES: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def learn_vocabulary(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, size: int
) -> Vocabulary:
    """Learn new pieces from a language's text, as byte-pair encoding on top of a tokenizer.

    Words stand as the tokenizer cuts them, those that it does not know as characters; the pair of
    neighbours that is most frequent becomes a piece, again and again (Sennrich et al., 2016,
    https://aclanthology.org/P16-1162). Each piece shortens the text by as many tokens as it has
    occurrences.

    Args:
        tokenizer: The encoder's, with a WordPiece, Unigram or BPE model.
        texts: Lines of the language; they are read once.
        size: Pieces at most; those seen fewer than five times are left out.

    Returns:
        The method, for `adapterx.add`; the same for the same texts.

    Raises:
        ConfigError: If `size` is below 1, or the tokenizer is no fast one of these models.
        DataError: If no piece can be learned.
    """
    if size < 1:
        raise ConfigError(f"size is {size} in learn_vocabulary. Set it to 1 or more.")
    cutter = _Cutter(tokenizer)
    counts = Counter(word for text in texts for word in cutter.words(text))
    words = [cutter.cut(word) for word in counts]
    repeats = list(counts.values())
    unknown: Counter[str] = Counter()
    for symbols, count in zip(words, repeats, strict=True):
        for symbol in symbols:
            if symbol not in cutter.known:
                unknown[symbol] += count
    frequent = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    found = {symbol: (symbol,) for symbol, count in frequent[:size] if count >= _LEAST}
    readable = cutter.known | found.keys()
    merges = _merges(words, repeats, readable, cutter.joined)
    pieces: list[tuple[str, ...]] = [*found.values(), *itertools.islice(merges, size - len(found))]
    if not pieces:
        raise DataError(
            f"The text has no piece that the tokenizer lacks and that is there {_LEAST} times. "
            "Give more text, or leave the vocabulary as it is."
        )
    return Vocabulary(pieces=tuple(pieces))


class _Cutter:
    """How a fast tokenizer cuts words, in its own spelling of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        raw = _backend(tokenizer)
        self.normalizer, self.pre_tokenizer = raw.normalizer, raw.pre_tokenizer
        self.model = raw.model
        self.prefix: str = getattr(raw.model, "continuing_subword_prefix", None) or ""
        self.unknown = tokenizer.unk_token_id
        self.known: set[str] = set(raw.get_vocab(with_added_tokens=False))
        # Byte-level models spell every byte as some letter or sign, so none tells of itself.
        self.spells_bytes = any("Ã©" in word for word in self.words("é"))

    def words(self, text: str) -> Iterator[str]:
        """Yield the words of a text; where spaces are marks, none has a mark inside."""
        if self.normalizer is not None:
            text = self.normalizer.normalize_str(text)
        found = [text]
        if self.pre_tokenizer is not None:
            found = [word for word, _ in self.pre_tokenizer.pre_tokenize_str(text)]
        for word in found:
            head, *rest = word.split(_SPACE)
            yield from ([head] if head else [])
            yield from (_SPACE + part for part in rest)

    def joined(self, pair: _Pair) -> str | None:
        """Return the piece of two neighbours, None if it would have a word and its punctuation."""
        piece = pair[0] + pair[1].removeprefix(self.prefix)
        signs = [_is_punctuation(sign) for sign in piece.removeprefix(_SPACE)]
        return piece if self.spells_bytes or all(signs) or not any(signs) else None

    def cut(self, word: str) -> list[str]:
        """Return the pieces of a word; what is unknown in it as characters."""
        tokens = self.model.tokenize(word)
        if not any(token.id == self.unknown or _BYTE.fullmatch(token.value) for token in tokens):
            return [token.value for token in tokens]
        if self.prefix:  # a word with an unknown character is unknown as a whole
            return [self.prefix * bool(at) + sign for at, sign in enumerate(word)]
        pieces: list[str] = []
        for known, run in itertools.groupby(word, key=self.known.__contains__):
            part = "".join(run)
            pieces += [token.value for token in self.model.tokenize(part)] if known else part
        return pieces


def _merges(
    words: list[list[str]],
    repeats: Sequence[int],
    readable: set[str],
    join: Callable[[_Pair], str | None],
) -> Iterator[_Pair]:
    """Yield the pairs that become pieces, the most frequent first; words and pieces change."""
    counts: Counter[_Pair] = Counter()
    places: dict[_Pair, set[int]] = {}

    def count(at: int, sign: int) -> set[_Pair]:
        pairs = [pair for pair in itertools.pairwise(words[at]) if readable.issuperset(pair)]
        for pair in pairs:
            counts[pair] += sign * repeats[at]
            places.setdefault(pair, set()).add(at)
        return set(pairs)

    for at in range(len(words)):
        count(at, 1)
    queue = [(-found, pair) for pair, found in counts.items()]
    heapq.heapify(queue)
    while queue:
        found, pair = heapq.heappop(queue)
        if -found < _LEAST:
            return
        joined = join(pair)
        if -found != counts[pair] or joined is None or joined in readable:
            continue  # counted anew since, or no new piece
        readable.add(joined)
        yield pair
        changed: set[_Pair] = set()
        for at in places[pair]:
            changed |= count(at, -1)
            words[at] = _joined(words[at], pair, joined)
            changed |= count(at, 1)
        for other in changed:
            heapq.heappush(queue, (-counts[other], other))


def _is_punctuation(sign: str) -> bool:
    # Apostrophes are letters in many orthographies.
    return sign not in "'’" and unicodedata.category(sign)[0] == "P"


def _joined(symbols: Sequence[str], pair: _Pair, joined: str) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] = joined
        else:
            result.append(symbol)
    return result


def tokenizer_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lang: str | None = None,
    task: str | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that reads texts for what is active on a model.

    It is the base's, but where a language adapter with a vocabulary of its own is stacked. What a
    mean or a fusion of several adapters answers is read by the base's.

    Args:
        model: The model, with adapters or without.
        tokenizer: The encoder's tokenizer, or one that this made of it.
        lang: What the rows choose, where rows choose their language.
        task: What they choose, where they choose their task.

    Returns:
        `tokenizer`, or one like it with the new pieces too, kept for the next call.

    Raises:
        CompositionError: If rows choose between vocabularies, and it is not said what they chose.
        UnknownNameError: If there is no such choice.
        ConfigError: If the tokenizer is no fast one, or not the encoder's.
    """
    axes: dict[Axis, str | None] = {"lang": lang, "task": task}
    rows: dict[Axis, Choice] = {axis: key for axis, key in axes.items() if key is not None}
    return tokenizers_of(model, tokenizer, 1, rows)[0]


def tokenizers_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    rows: Mapping[Axis, Choice] | None = None,
) -> list[PreTrainedTokenizerBase]:
    """Return the tokenizer of each of some texts; see `tokenizer_of`.

    Args:
        model: The model.
        tokenizer: The encoder's tokenizer, or one that was made of it.
        count: How many texts.
        rows: What they choose: a key for all, or one each.

    Raises:
        CompositionError, UnknownNameError, ConfigError: As `tokenizer_of`.
    """
    plan, own = plan_on(model), _vocabularies(model)
    base = _base_of(tokenizer)
    if plan is None or len(set(own)) < 2:
        return [_with(base, own[0] if own else None)] * count
    missing = [axis for axis in plan.axes if axis not in (rows or {})]
    if missing:
        raise CompositionError(
            f"Rows choose between vocabularies in {plan.composition}, and here all texts are read "
            f"alike. Ask for one at a time: with adapterx.using(model, {missing[0]}=...)."
        )
    chosen = [int(variant) for variant in variants_of(plan, rows or {}, count)]
    # What is answered several times is read once.
    each = [tuple(chosen[at::count]) for at in range(count)]
    readers: dict[tuple[int, ...], PreTrainedTokenizerBase] = {}
    for variants in set(each):
        every = {own[variant] for variant in variants}
        readers[variants] = _with(base, every.pop() if len(every) == 1 else None)
    return [readers[variants] for variants in each]


def encoded(
    texts: Sequence[Any], tokenizers: Sequence[PreTrainedTokenizerBase], **settings: Any
) -> list[dict[str, list[int]]]:
    """Return what each text's tokenizer makes of it, not padded.

    Args:
        texts: Texts, or pairs of texts.
        tokenizers: One for each; `tokenizers_of`.
        settings: As the tokenizers take them, such as ``truncation``.
    """
    read = encodings(texts, tokenizers, **settings)
    return [{key: made[key][row] for key in made} for made, row in read]


def encodings(
    texts: Sequence[Any], tokenizers: Sequence[PreTrainedTokenizerBase], **settings: Any
) -> list[tuple[BatchEncoding, int]]:
    """Return what each text's tokenizer makes of it and of others, and the text's row in that."""
    found: dict[int, tuple[BatchEncoding, int]] = {}
    for one in dict.fromkeys(tokenizers):
        chosen = [at for at, each in enumerate(tokenizers) if each is one]
        made = one([texts[at] for at in chosen], **settings)
        found |= {at: (made, row) for row, at in enumerate(chosen)}
    return [found[at] for at in range(len(texts))]


def start_rows(model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the rows of a fresh vocabulary their start; those that were trained stay.

    A new piece starts as the mean of the base's pieces that it is put together from, a character
    that the base does not know as the mean of all its rows.

    Args:
        model: With the adapter on it.
        tokenizer: The encoder's tokenizer.
        name: The adapter; one without a vocabulary is left as it is.
    """
    for place, module in adapter_modules(model, name):
        if not isinstance(module, VocabularyModule) or bool(module.weight.any()):
            continue
        embedding = unwrap(model).base_model.get_submodule(place.port.module)
        assert isinstance(embedding, nn.Embedding)
        base = embedding.weight.detach().float()
        everything = base.mean(0)
        ids = _backend(_base_of(tokenizer)).get_vocab()
        # Of each new piece the pieces of the base in it; none of an unknown character.
        inside: dict[str, list[int]] = {}
        rows: list[Tensor] = []
        for piece, parts in zip(_texts(tokenizer, module.pieces), module.pieces, strict=True):
            inside[piece] = [
                at for part in parts for at in inside.get(part, [ids[part]] if part in ids else [])
            ]
            rows.append(base[inside[piece]].mean(0) if inside[piece] else everything)
        with torch.no_grad():
            module.weight.copy_(torch.stack(rows))


def _vocabularies(model: nn.Module) -> list[_Own | None]:
    """Return for each variant of what is active whose pieces it reads, None for the base's."""
    plan, registry = plan_on(model), registry_of(model)
    if plan is None or registry is None:
        return []
    found: list[_Own | None] = [None] * len(plan.partition)
    for key, program in plan.programs.items():
        site = registry.sites[key]
        for variant in range(len(found) if site.port.reads == "ids" else 0):
            for step in program.steps(variant):
                assert isinstance(step, Act), "a mean or a fusion has no vocabulary"
                module = site.module_of(step.name)
                assert isinstance(module, VocabularyModule)
                found[variant] = module.settings
    return found


def _base_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    known = _BASES.get(tokenizer)
    base = tokenizer if known is None else known()
    if base is None:
        raise ConfigError(
            "This tokenizer has a language's own pieces, and the one it was made of is gone. Give "
            "the encoder's own tokenizer."
        )
    return base


def _with(base: PreTrainedTokenizerBase, own: _Own | None) -> PreTrainedTokenizerBase:
    if own is None:
        return base
    made = _MADE.setdefault(base, {})
    if own not in made:
        made[own] = _extended(base, *own)
        _BASES[made[own]] = weakref.ref(base)
    return made[own]


def _extended(
    base: PreTrainedTokenizerBase, first: int, pieces: Sequence[tuple[str, ...]]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer with new pieces, whose ids begin at `first`."""
    raw = _backend(base)
    names = {at: piece for piece, at in raw.get_vocab().items()}
    count = max(names) + 1
    if count > first:
        raise ConfigError(
            f"The tokenizer has {count} pieces, the encoder's embedding {first} rows, so "
            "new pieces have no ids of their own. Give the encoder's own tokenizer."
        )
    data = json.loads(raw.to_str())
    own, texts = data["model"], _texts(base, pieces)
    # Ids that no piece has, between the tokenizer's last and the embedding's, get names that are
    # in no text: one with a space is in no word.
    unused = {at: names.get(at, f"<no piece {at}>") for at in range(first)}
    if isinstance(own["vocab"], dict):
        own["vocab"] |= {
            piece: at for at, piece in (unused | dict(enumerate(texts, first))).items()
        }
    else:
        scores = dict(own["vocab"])
        lowest = min(scores.values())
        own["vocab"] += [[unused[at], lowest] for at in range(len(own["vocab"]), first)]
        for piece, parts in zip(texts, pieces, strict=True):
            whole = sum(scores[part] for part in parts) + _BONUS if len(parts) > 1 else lowest
            scores[piece] = whole
            own["vocab"].append([piece, whole])
    if "merges" in own:
        own["merges"] += [list(parts) for parts in pieces if len(parts) > 1]
    made = copy.copy(base)
    made._tokenizer = Tokenizer.from_str(json.dumps(data))
    return made


def _texts(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[tuple[str, ...]]) -> list[str]:
    """Return new pieces as the tokenizer spells them."""
    prefix = getattr(_backend(tokenizer).model, "continuing_subword_prefix", None) or ""
    return [parts[0] + "".join(part.removeprefix(prefix) for part in parts[1:]) for parts in pieces]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    raw = getattr(tokenizer, "backend_tokenizer", None)
    if raw is None or not isinstance(raw.model, models.BPE | models.Unigram | models.WordPiece):
        raise ConfigError(
            f"{type(tokenizer).__name__} cannot be given new pieces. Load a fast tokenizer with a "
            "WordPiece, Unigram or BPE model (AutoTokenizer does where there is one)."
        )
    return raw
