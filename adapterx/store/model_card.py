"""Model cards: the ``README.md`` of a saved adapter, as the Hub shows it."""

from __future__ import annotations

from collections.abc import Sequence

from adapterx.methods import Method, describe
from adapterx.store.card import Card

__all__ = ["model_card"]


def model_card(card: Card, methods: Sequence[Method], repo_id: str | None = None) -> str:
    """Return the Markdown text of a model card, with the Hub's metadata on top.

    Args:
        card: The adapter's facts.
        methods: Its methods.
        repo_id: Where it is pushed to; None for a folder.
    """
    base_id = card.base.name if "/" in card.base.name else None
    source = f'"{repo_id}"' if repo_id else '"path/to/this/folder"'
    metadata = [
        "library_name: adapterx",
        *([f"base_model: {base_id}", "base_model_relation: adapter"] if base_id else []),
        # The Hub takes the bare language; quoted, for "no" is a truth value in YAML.
        *([f'language: "{card.language.split("-")[0]}"'] if card.language else []),
        *(["pipeline_tag: text-classification"] if card.labels else []),
        "tags:",
        "- adapterx",
        f"- {card.kind}-adapter",
        f"- {card.base.type}",
    ]
    trained = f"labels in `{card.language}`" if card.language else "labels"
    about = (
        f"A task adapter with its head, trained from {trained}."
        if card.kind == "task"
        else f"A language adapter for `{card.language}`."
    )
    use = f'lang={source}, task="…"' if card.kind == "language" else f"task={source}"
    lines = [
        "---",
        *metadata,
        "---",
        "",
        f"# {card.name}",
        "",
        f"{about} It acts inside a frozen encoder: {card.base}. Method: {describe(methods)}.",
        "",
        "```python",
        "import adapterx",
        *_loading(card),
        f"adapterx.attach(model, {use})",
        "```",
        "",
    ]
    if card.labels:
        lines += [f"Labels: {', '.join(f'`{name}`' for name in card.labels.names)}.", ""]
    if card.kind == "language" and card.strength != 1:
        lines += [f"`attach` stacks it at strength {card.strength:g}.", ""]
    for title, facts in card.facts.items():
        if isinstance(facts, dict) and facts:
            lines += [f"## {title.capitalize()}", "", "| | |", "|---|---|"]
            lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
            lines.append("")
    return "\n".join(lines)


def _loading(card: Card) -> list[str]:
    name = card.base.name
    if "/" not in name:  # no Hub id: the packaged encoder, or a folder
        return [
            "from adapterx.encoders import load_encoder",
            "",
            f'model, tokenizer = load_encoder("{name}")',
        ]
    head = card.model_class or "AutoModel"
    module = "adapterx" if head.startswith("MeanPooling") else "transformers"
    return [f"from {module} import {head}", "", f'model = {head}.from_pretrained("{name}")']


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    # A card is rendered as HTML on the Hub: nothing in it may open a tag or a cell.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
