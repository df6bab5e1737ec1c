"""Model cards: the ``README.md`` of a saved adapter or setup, as the Hub shows it.

The Hub renders it as HTML: nothing that an adapter says of itself may open a tag, a cell or a
line of the metadata. Fields of the metadata: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from adapterx.composition import Composition
from adapterx.store.card import Card

__all__ = ["PLACEHOLDER", "model_card", "setup_card"]

PLACEHOLDER: Final = '"path/to/this/folder"'  # in the usage, until it is pushed
# What the Hub calls the work of a class of models; by the end of its name.
_PIPELINES: Final = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MultipleChoice": "multiple-choice",
}
# What the packaged encoder is loaded with for their heads.
_SETTINGS: Final = {
    "text-classification": ', pooling="{}"',
    "token-classification": ', head="token"',
    "question-answering": ', head="span"',
}
_EVALUATION: Final = "evaluation"


def model_card(card: Card, method: str, sizes: Mapping[str, int]) -> str:
    """Return the Markdown text of an adapter's model card, with the Hub's metadata on top.

    Of its facts it reads ``licence``, an identifier of the Hub, and ``evaluation``, as
    `adapterx.evaluation.scores.scores_of` gives it; others that are mappings are shown as tables.

    Args:
        card: The adapter's facts.
        method: Its methods in words.
        sizes: Its files of tensors with their bytes.
    """
    trained = f"labels in `{_code(card.language)}`" if card.language else "labels"
    about = (
        f"A task adapter with its head, trained from {trained}."
        if card.kind == "task"
        else f"A language adapter for `{_code(card.language)}`."
    )
    use = f'lang={PLACEHOLDER}, task="…"' if card.kind == "language" else f"task={PLACEHOLDER}"
    lines = [
        *_metadata([card]),
        f"# {_text(card.name)}",
        "",
        f"{about} It acts inside a frozen encoder: {_text(card.base)}. Method: {_text(method)}.",
        "",
        *_usage(card, f"adapterx.attach(model, {use})"),
    ]
    if card.labels:
        lines += [f"Labels: {', '.join(f'`{_code(name)}`' for name in card.labels.names)}.", ""]
    if card.kind == "language" and card.strength != 1:
        lines += [f"`attach` stacks it at strength {card.strength:g}.", ""]
    lines += _scores(card)
    for title, facts in card.facts.items():
        if isinstance(facts, dict) and facts and title != _EVALUATION:
            lines += [f"## {_text(title).capitalize()}", "", "| | |", "|---|---|"]
            lines += [f"| {_text(key)} | {_text(value)} |" for key, value in facts.items()]
            lines.append("")
    files = [f"| `{name}` | {size / 1e6:.2f} MB |" for name, size in sizes.items()]
    lines += ["## Files", "", "| | |", "|---|---|", *files, ""]
    return "\n".join(lines)


def setup_card(composition: Composition, cards: Sequence[Card]) -> str:
    """Return the Markdown text of a setup's model card.

    Args:
        composition: What acts.
        cards: Those of the adapters in it.
    """
    lines = [
        *_metadata(cards),
        f"# {composition}",
        "",
        f"A composition of {len(cards)} adapters that act inside a frozen encoder"
        + (f": {_text(cards[0].base)}." if cards else "."),
        "",
    ]
    if cards:
        # The class is that of the heads, where there are any.
        headed = next((card for card in cards if card.model_class), cards[0])
        lines += _usage(headed, f"adapterx.load(model, {PLACEHOLDER})")
        lines += ["| adapter | kind | language | labels |", "|---|---|---|---|"]
    for card in cards:
        labels = ", ".join(f"`{_code(name)}`" for name in card.labels.names) if card.labels else ""
        lines.append(
            f"| {_text(card.name)} | {card.kind} | {_text(card.language or '')} | {labels} |"
        )
    return "\n".join([*lines, ""])


def _metadata(cards: Sequence[Card]) -> list[str]:
    from huggingface_hub import ModelCardData

    known = dict.fromkeys(card.language.split("-")[0] for card in cards if card.language)
    # The Hub takes bare languages of two or three letters.
    languages = [tag for tag in known if re.fullmatch(r"[a-z]{2,3}", tag)]
    licences = {_licence(card) for card in cards}
    base_id = cards[0].base.name if cards and "/" in cards[0].base.name else None
    results = [result for card in cards for result in _results(card)]
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base_id else {}
    data = ModelCardData(
        base_model=base_id,
        language=languages[0] if len(languages) == 1 else languages or None,
        license=licences.pop() if len(licences) == 1 else None,
        library_name="adapterx",
        pipeline_tag=next((tag for card in cards if (tag := _pipeline(card))), None),
        tags=[
            "adapterx",
            *dict.fromkeys(f"{card.kind}-adapter" for card in cards),
            *dict.fromkeys(card.base.type for card in cards),
        ],
        model_name=cards[0].name if results else None,
        eval_results=results or None,
        **relation,
    )
    return ["---", *data.to_yaml().splitlines(), "---", ""]


def _pipeline(card: Card) -> str | None:
    ends = (tag for end, tag in _PIPELINES.items() if (card.model_class or "").endswith(end))
    return next(ends, None)


def _licence(card: Card) -> str | None:
    licence = card.facts.get("licence")
    return licence if isinstance(licence, str) and re.fullmatch(r"[\w.\-]+", licence) else None


def _cells(card: Card) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the measured cells of a card's evaluation: language, column, value with interval."""
    evaluation = card.facts.get(_EVALUATION)
    languages = evaluation.get("languages") if isinstance(evaluation, dict) else None
    for tag, columns in languages.items() if isinstance(languages, dict) else ():
        for column, cell in columns.items() if isinstance(columns, dict) else ():
            if isinstance(cell, dict) and isinstance(cell.get("value"), int | float):
                yield tag, column, cell


def _results(card: Card) -> list[Any]:
    """Return a card's scores as the Hub's ``model-index`` has them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_pipeline(card) or "other",
            dataset_type="custom",
            dataset_name=f"test data, {tag}",
            dataset_config=tag,
            metric_type=str(_evaluation(card).get("score")),
            metric_name=f"{_evaluation(card).get('score')}, {column}",
            metric_value=cell["value"],
        )
        for tag, column, cell in _cells(card)
    ]


def _evaluation(card: Card) -> Mapping[str, Any]:
    evaluation = card.facts.get(_EVALUATION)
    return evaluation if isinstance(evaluation, dict) else {}


def _scores(card: Card) -> Iterator[str]:
    """Yield the table of languages and columns, each value with its interval."""
    cells = list(_cells(card))
    if not cells:
        return
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    rows: dict[str, dict[str, str]] = {}
    for tag, column, cell in cells:
        low, high = cell.get("low"), cell.get("high")
        known = isinstance(low, int | float) and isinstance(high, int | float)
        span = f" ({low:.2f} to {high:.2f})" if known else ""
        rows.setdefault(tag, {})[column] = f"{cell['value']:.3f}{span}"
    facts = _evaluation(card)
    yield from ("## Scores", "", f"{_text(facts.get('score'))}, with intervals of 95 %.", "")
    yield f"| language | {' | '.join(map(_text, columns))} |"
    yield f"|---|{'---|' * len(columns)}"
    for tag, row in rows.items():
        yield f"| {_text(tag)} | {' | '.join(row.get(column, '–') for column in columns)} |"
    yield from ("", f"Measured by `{_code(facts.get('command'))}`.", "")


def _usage(card: Card, last: str) -> list[str]:
    """Return four lines of Python that end in `last`."""
    name = card.base.name
    if "/" not in name:  # no Hub id: the packaged encoder, or a folder
        pooling = "mean" if (card.model_class or "").startswith("MeanPooling") else "model"
        settings = _SETTINGS.get(_pipeline(card) or "", "").format(pooling)
        loading = [
            "from adapterx.encoders import load_encoder",
            f"model, tokenizer = load_encoder({_quoted(name)}{settings})",
        ]
    else:
        # In code only what is a name; a card may come from anyone.
        known = card.model_class is not None and card.model_class.isidentifier()
        head = str(card.model_class) if known else "AutoModel"
        module = "adapterx" if head.startswith("MeanPooling") else "transformers"
        loading = [
            f"from {module} import {head}",
            f"model = {head}.from_pretrained({_quoted(name)})",
        ]
    return ["```python", "import adapterx", *loading, last, "```", ""]


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _code(value: object) -> str:
    """Return a text that can stand between backticks."""
    return _line(value).replace("`", "'").replace("|", "\\|")


def _text(value: object) -> str:
    """Return a text that opens nothing, in Markdown or HTML."""
    shown = f"{value:.3f}" if isinstance(value, float) else _line(value)
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(shown, quote=False))


def _line(value: object) -> str:
    return " ".join(str(value).split())
