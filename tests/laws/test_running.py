"""Law 9: the way of running doesn't matter."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, pipeline

import adapterx
from adapterx import LoRA, Scale, Stack

STACK = Stack(Scale("sw", 0.8), "nli")
# Every kind of site and of module at once.
METHODS = {
    "bottlenecks": ("seq_bn_inv", "double_seq_bn"),
    "branches": ("par_bn", LoRA(targets="all", rank=2)),
}
LABELS = torch.tensor([0, 2, 1, 0])
# One family of each kind of row; a compilation takes seconds.
COMPILED = (
    *("albert", "bert", "deberta-v2", "distilbert", "eurobert", "gte", "mbart", "modernbert"),
    *("t5", "xmod"),
)
# Transformers 5.23 renamed it.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def methods(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def setup(build, fill) -> Any:
    """Return ``setup(family, methods, ...)``: a classifier with a filled stack active."""

    def setup(family: str, methods: Any, kind: str = "sequence", **settings: Any) -> Any:
        model = build(family, kind, **settings)
        adapterx.add(model, "sw", methods[0], kind="language")
        labels = ["no", "yes", "perhaps"] if kind not in ("encoder", "masked-lm") else None
        adapterx.add(model, "nli", methods[1], labels=labels)
        fill(model, size=0.15)
        adapterx.set_trainable(model, ["sw", "nli"])
        return adapterx.activate(model, STACK)

    return setup


def _gradients(model: Any, batch: dict[str, Tensor], seed: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    model(**batch, labels=LABELS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# Precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_base_answers_as_the_plain_run(
    setup, batch, run, close, family, methods, half, mode
) -> None:
    plain = run(setup(family, methods, mode=mode), batch)
    model = setup(family, methods, mode=mode, dtype=half)
    answers = run(model, batch)
    assert {answer.dtype for answer in answers.values()} <= {half, torch.float32}
    assert next(value for key, value in answers.items() if "hidden" in key).dtype == half
    assert close(answers, plain, half)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_base_gives_float32_gradients_to_adapters(
    setup, batch, family, methods, half
) -> None:
    model = setup(family, methods, mode="train", dtype=half)
    plain = _gradients(setup(family, methods, mode="train"), batch)
    gradients = _gradients(model, batch)
    assert gradients.keys() == plain.keys()
    flat, wanted = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, plain))
    assert flat.dtype == torch.float32
    assert torch.cosine_similarity(flat, wanted, dim=0) > 0.99


def test_model_cast_to_half_after_attaching_answers_as_the_plain_run(
    setup, batch, run, close, family, methods
) -> None:
    """``model.to(bfloat16)`` casts the adapters too: nothing assumes their dtype."""
    model = setup(family, methods)
    plain = run(model, batch)
    assert close(run(model.to(torch.bfloat16), batch), plain, torch.bfloat16)


def test_autocast_answers_as_the_plain_run(setup, batch, run, close, family, methods, mode) -> None:
    if family == "xmod":
        pytest.skip("its own language adapters cannot run under autocast in transformers")
    model = setup(family, methods, mode=mode)
    plain = run(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        answers = run(model, batch)
    assert close(answers, plain, torch.bfloat16)


def test_autocast_trains_adapters_in_float32(setup, batch, family, methods) -> None:
    if family == "xmod":
        pytest.skip("its own language adapters cannot run under autocast in transformers")
    model = setup(family, methods, mode="train")
    plain = _gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = _gradients(model, batch)
    assert gradients.keys() == plain.keys()
    flat, wanted = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, plain))
    assert flat.dtype == torch.float32
    assert torch.cosine_similarity(flat, wanted, dim=0) > 0.99


# Memory, compilation, copies


def test_gradient_checkpointing_gives_equal_gradients(
    setup, batch, close, family, methods, dtype
) -> None:
    model = setup(family, methods, mode="train", dropout=0.1, dtype=dtype)
    if not model.supports_gradient_checkpointing:
        pytest.skip(f"{family} cannot checkpoint in transformers")
    calls: list[int] = []
    layers = next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))
    first = next(part for part in layers[-1].modules() if isinstance(part, nn.Linear))
    first.register_forward_hook(lambda *_: calls.append(1))
    expected = _gradients(model, batch)
    once = len(calls)
    getattr(model, f"{CHECKPOINTING}_enable")()
    gradients = _gradients(model, batch)
    assert len(calls) == 3 * once, "the layer did not run again"
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert close(gradient, expected[name]), name


def test_deep_copy_is_equal_and_independent(setup, batch, run, same, family, methods, mode) -> None:
    model = setup(family, methods, mode=mode, dropout=0.1)
    before = run(model, batch)
    twin = copy.deepcopy(model)
    assert same(run(twin, batch), before)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    adapterx.activate(twin, None)
    adapterx.add(twin, "yo", "lora", kind="language")
    assert same(run(model, batch), before)
    assert not same(run(twin, batch), before)
    adapterx.activate(model, "sw")
    adapterx.activate(twin, STACK)
    assert same(run(twin, batch), before)
    adapterx.detach(model)
    assert same(run(twin, batch), before)
    assert [row.name for row in adapterx.summary(twin).adapters] == ["sw", "nli", "yo"]


def test_pickled_model_is_equal_and_works_on(setup, batch, run, same, family, methods) -> None:
    model = setup(family, methods)
    before = run(model, batch, hidden=False)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert same(run(twin, batch, hidden=False), before)
    adapterx.activate(model, "sw")
    adapterx.activate(twin, "sw")
    assert same(run(twin, batch, hidden=False), run(model, batch, hidden=False))
    adapterx.detach(twin)
    adapterx.detach(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert same(run(twin, batch, hidden=False), run(model, batch, hidden=False))


def test_state_dict_of_a_model_with_adapters_loads_back(
    setup, batch, run, same, family, methods
) -> None:
    model = setup(family, methods)
    expected = run(model, batch)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not same(run(model, batch), expected)
    model.load_state_dict(state)
    assert same(run(model, batch), expected)


def test_threads_share_a_model(setup, make_batch, same, family, methods) -> None:
    model = setup(family, methods)
    batches = [make_batch(rows=2, length=5, seed=seed) for seed in range(16)]

    def answer(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": model(**batch).logits}

    expected = [answer(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(answer, batches * 4), expected * 4, strict=True):
            assert same(one, other)


def test_threads_with_a_copy_each_have_a_setup_each(setup, batch, run, same, family) -> None:
    model = setup(family, METHODS["bottlenecks"])
    compositions = [None, "sw", "nli", STACK]
    expected = [run(adapterx.activate(model, each), batch, hidden=False) for each in compositions]
    copies = [copy.deepcopy(model) for _ in compositions]

    def answer(index: int) -> list[dict[str, Tensor]]:
        answers = []
        for _ in range(10):
            with adapterx.using(copies[index], compositions[index]) as model:
                answers.append(run(model, batch, hidden=False))
        return answers

    with ThreadPoolExecutor(4) as pool:
        for index, answers in enumerate(pool.map(answer, range(4))):
            assert all(same(one, expected[index]) for one in answers)


def test_attention_implementations_give_the_same_answers(
    setup, batch, run, close, family, methods
) -> None:
    one, other = (
        run(setup(family, methods, attention=name), batch, hidden=False)
        for name in ("sdpa", "eager")
    )
    assert close(one, other)


def test_embeddings_in_place_of_ids_give_the_same_answers(
    setup, batch, run, same, family, methods
) -> None:
    # T5's and mBART's classifiers look for the end of the text in its ids.
    model = setup(family, methods, "encoder" if "decoder_input_ids" in batch else "sequence")
    # Some count positions from the padding ids: the first row has none.
    batch = {key: value[:1] for key, value in batch.items()}
    expected = run(model, batch)
    embed = model.get_input_embeddings()
    embedded = {
        key.replace("input_ids", "inputs_embeds"): embed(value).detach() if "ids" in key else value
        for key, value in batch.items()
    }
    assert same(run(model, embedded), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiled_family, chosen, backend",
    [
        *((name, "branches", "aot_eager") for name in COMPILED),
        *((name, "bottlenecks", "aot_eager") for name in ("bert", "modernbert", "mbart", "t5")),
        ("xlm-roberta", "bottlenecks", "inductor"),
    ],
)
def test_compiled_model_gives_the_same_answers_and_gradients(
    setup, batch, run, close, compiled_family, chosen, backend
) -> None:
    model = setup(compiled_family, METHODS[chosen])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for composition in (STACK, None, "sw", STACK):
        adapterx.activate(compiled, composition)  # through the wrapper
        expected = run(model, batch, hidden=False)["logits.0"]
        with torch.no_grad():
            assert close(compiled(**batch).logits, expected)

    def gradients_of(model: Any) -> dict[str, Tensor]:  # DeBERTa's own loss does not compile
        model.zero_grad()
        model(**batch).logits.pow(2).sum().backward()
        named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {name.removeprefix("_orig_mod."): grad for name, grad in named.items()}

    expected, gradients = gradients_of(model), gradients_of(compiled)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * largest
    adapterx.detach(compiled)
    with torch.no_grad():
        assert close(compiled(**batch).logits, run(model, batch, hidden=False)["logits.0"])


# Libraries around


@pytest.mark.parametrize("attached", ["before", "after"])
def test_dispatched_model_gives_the_same_answers(
    setup, build, batch, run, same, family, methods, attached
) -> None:
    model = setup(family, methods)
    expected = run(model, batch, hidden=False)
    if attached == "before":
        moved = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    else:
        moved = build(family, "sequence")
        accelerate.dispatch_model(moved, device_map={"": "cpu"}, force_hooks=True)
        adapterx.add(moved, "sw", methods[0], kind="language")
        adapterx.add(moved, "nli", methods[1], labels=["no", "yes", "perhaps"])
        adapterx.activate(moved, STACK)
        moved.load_state_dict(model.state_dict())
    assert same(run(moved, batch, hidden=False), expected)


def test_offloaded_model_gives_the_same_answers(setup, batch, run, same, family, methods) -> None:
    """``device_map`` with weights kept elsewhere: they come in for one module at a time."""
    if family == "deberta-v2":
        pytest.skip("it reads a weight of relative positions without calling its module")
    model = setup(family, methods)
    expected = run(model, batch, hidden=False)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert same(run(model, batch, hidden=False), expected)


@pytest.mark.parametrize("sentence_kind", ["sequence", "mean"])
def test_pipeline_gives_the_answers_of_predict(
    setup, tokenizer, family, methods, sentence_kind
) -> None:
    model = setup(family, methods, sentence_kind)
    texts = [f"{text} </s>" for text in ("w1 w2 w3", "w50", "w7 w7 w7 w7 w7 w7 w8", "")]
    predicted = adapterx.predict(model, tokenizer, texts)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    for answer, prediction in zip(classify(texts, batch_size=2), predicted, strict=True):
        assert answer["label"] == prediction["label"]
        assert abs(answer["score"] - prediction["score"]) < 1e-5
    assert {answer["label"] for answer in predicted} <= {"no", "yes", "perhaps"}
    adapterx.activate(model, "sw")
    assert classify("w1 </s>")[0]["label"].startswith("LABEL_")


# Task of a pipeline -> class of the model, its answer as numbers, and those of a plain call; the
# third token of the text is hidden.
PIPELINES: dict[str, tuple[str, Any, Any]] = {
    "feature-extraction": (
        "encoder",
        lambda answer, _: answer[0],
        lambda outputs: outputs.last_hidden_state[0],
    ),
    "fill-mask": (
        "masked-lm",
        lambda answer, _: [(one["token"], one["score"]) for one in answer],
        lambda outputs: torch.stack(outputs.logits[0, 2].softmax(-1).topk(5)[::-1]).T,
    ),
    "token-classification": (
        "token",
        lambda answer, labels: [(labels[one["entity"]], one["score"]) for one in answer],
        lambda outputs: torch.stack(outputs.logits[0].softmax(-1).max(-1)[::-1]).T,
    ),
}


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines_answer_as_the_model(setup, tokenizer, close, wide, methods, task) -> None:
    kind, read, expected = PIPELINES[task]
    model = setup(wide, methods, kind)
    labels = model.config.label2id
    if kind == "token":
        assert list(labels) == ["no", "yes", "perhaps"]
    text = "w1 w2 <mask> w4"
    batch = tokenizer(text, return_tensors="pt")
    ask = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    answers = []
    for composition in (STACK, "nli"):
        adapterx.activate(model, composition)
        with torch.no_grad():
            outputs = model(**batch)
        answers.append(torch.tensor(read(ask(text), labels)))
        assert close(answers[-1], expected(outputs))
    assert not close(*answers)


def test_zero_shot_pipeline_reads_the_labels_of_the_task(setup, tokenizer, close, methods) -> None:
    model = setup("bert", methods)
    adapterx.add(model, "xnli", methods[1], labels=["entailment", "neutral", "contradiction"])
    adapterx.activate(model, Stack("sw", "xnli"))
    ask = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, device="cpu")
    answer = ask("w1 w2", ["w7", "w9"], hypothesis_template="{} </s>")
    pairs = [tokenizer("w1 w2", f"{label} </s>", return_tensors="pt") for label in answer["labels"]]
    with torch.no_grad():
        scores = torch.stack([model(**pair).logits[0, 0] for pair in pairs]).softmax(-1)
    assert close(torch.tensor(answer["scores"]), scores)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.rows = [
            {key: value[i] for key, value in batch.items()} | {"labels": LABELS[i]}
            for i in range(4)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_takes_the_steps_of_a_plain_loop(
    setup, batch, family, methods, checkpointing, tmp_path
) -> None:
    plain = setup(family, methods, mode="train")
    if checkpointing and not plain.supports_gradient_checkpointing:
        pytest.skip(f"{family} cannot checkpoint in transformers")
    trainable = [p for p in plain.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.0)
    for _ in range(2):
        optimiser.zero_grad()
        plain(**batch, labels=LABELS).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
    model = setup(family, methods)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        use_cpu=True,
        report_to=[],
        **({CHECKPOINTING: True} if checkpointing else {}),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=_Rows(batch)).train()
    parameters = dict(model.named_parameters())
    for name, value in frozen.items():
        assert torch.equal(parameters[name], value), name
    # Trainer shuffles the rows, so sums differ in the last digits; Adam divides by their size.
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert (parameters[name] - parameter).abs().max() < 1e-3, name


# Several processes

WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
import adapterx

torch.set_num_threads(1)
how, rank, world, root = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=world)
model, batch, labels = torch.load(root / "setup.pt", weights_only=False)
if how == "ddp":
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model)
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    for layer in model.base_model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    wrapped = fully_shard(model, mesh=mesh)
optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.01)
mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
rows = {key: value[mine] for key, value in batch.items()}
for _ in range(2):
    optimiser.zero_grad()
    wrapped(**rows, labels=labels[mine]).loss.backward()
    optimiser.step()
adapterx.activate(wrapped, "sw")
adapterx.activate(wrapped, "Stack(Scale(sw, 0.8), nli)")
with torch.no_grad():
    logits = wrapped(**batch).logits
state = {
    name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
    for name, p in model.named_parameters()
}
torch.save((logits, state), root / f"rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, processes", [("ddp", 2), ("fsdp", 2)])
def test_several_processes_train_as_one(setup, batch, methods, how, processes, tmp_path) -> None:
    model = setup("xlm-roberta", methods, mode="train")
    torch.save((model, batch, LABELS), tmp_path / "setup.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, how, str(rank), str(processes), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(processes)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        model(**batch, labels=LABELS).loss.backward()
        optimiser.step()
    with torch.no_grad():
        logits = model(**batch).logits
    for rank in range(processes):
        answer, state = torch.load(tmp_path / f"rank{rank}.pt")
        assert (answer - logits).abs().max() <= 1e-4 * logits.abs().max()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert (state[name] - parameter).abs().max() <= 1e-4, name
            else:
                assert torch.equal(state[name], parameter), name
