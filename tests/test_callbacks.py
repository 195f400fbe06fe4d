"""Watching what Lightning's and Hugging Face's trainers train, with the real libraries."""

from __future__ import annotations

import ast
import gc
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradexp.analysis import judge
from gradexp.analysis.decay import over_depth
from gradexp.errors import ConfigError
from gradexp.probes.nonfinite import NonFiniteError
from gradexp.records import RunDir
from gradexp.report import make_report
from gradexp.watching import watch
from tests.conftest import ROOT

# Importing these libraries takes seconds: one process does for all, and only when it comes to it.
pytestmark = [
    pytest.mark.xdist_group("trainers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
INPUTS, WIDTH, CLASSES, BATCH = 6, 5, 3, 8
STEPS = 6
WORDS, LENGTH = 20, 7


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """The libraries; trainers collect garbage often, among the millions of objects they bring."""
    importlib.import_module("lightning.pytorch")
    importlib.import_module("transformers.trainer")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def examples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, INPUTS, generator=generator)
    return inputs, torch.randint(0, CLASSES, (count,), generator=generator)


def a_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Dropout(dropout), nn.Linear(WIDTH, CLASSES)
    )


def norms(gradients: list[Tensor]) -> list[float]:
    return [float(one.double().norm()) for one in gradients]


def flat(rows: list[list[float]]) -> list[float]:
    return [one for row in rows for one in row]


def nothing_is_hooked(module: nn.Module) -> bool:
    return not any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
        for part in module.modules()
    ) and not any(one._post_accumulate_grad_hooks for one in module.parameters())


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def the_run(folder: Path) -> RunDir:
    (path,) = (one.parent for one in folder.rglob("manifest.json"))
    return RunDir(path)


# --- Lightning ---------------------------------------------------------------------------------


@cache
def lightning_kind() -> type[Any]:
    from lightning.pytorch import LightningModule

    class Classifier(LightningModule):
        def __init__(self, dropout: float = 0.0, fails_at: int = -1) -> None:
            super().__init__()
            self.net = a_net(dropout)
            self.fails_at = fails_at

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            if index == self.fails_at:
                raise ZeroDivisionError("in the middle")
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
            self.log("loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier


SPREAD = {"strategy": "ddp", "devices": 1, "use_distributed_sampler": False}


def fit(module: Any, folder: Path, callback: Any = None, batches: int = STEPS, **more: Any) -> Any:
    from lightning.pytorch import Trainer

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else [],
        **more,
    )
    train = DataLoader(TensorDataset(*examples(batches * BATCH)), BATCH)
    test = DataLoader(TensorDataset(*examples(BATCH, seed=1)), 3)
    torch.manual_seed(1)
    trainer.fit(module, train, test)
    return module


def lightning_callback(folder: Path, **settings: Any) -> Any:
    from gradexp.watching.lightning import GradexpCallback

    return GradexpCallback(out=folder / "run", **settings)


def probing(**more: Any) -> dict[str, Any]:
    return {"probe": examples(16, seed=2), "loss": F.cross_entropy, "every": 2, **more}


def plain_loop(accumulate: int, clip: float = 0.0) -> tuple[list[float], list[list[float]]]:
    """What the loop of a book records: of each step the loss, and the weights' gradient norms."""
    net = a_net()
    weights = [net[0].weight, net[3].weight]
    stepper = torch.optim.SGD(net.parameters(), lr=0.1)
    losses, gradients = [], []
    inputs, targets = (
        one.chunk(STEPS * accumulate) for one in examples(STEPS * accumulate * BATCH)
    )
    for step in range(STEPS):
        parts = range(step * accumulate, (step + 1) * accumulate)
        terms = [F.cross_entropy(net(inputs[part]), targets[part]) for part in parts]
        loss = torch.stack(terms).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(norms([one.grad for one in weights]))
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        stepper.step()
        stepper.zero_grad()
    return losses, gradients


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (2, 0.0), (2, 0.05)])
def test_lightnings_steps_are_those_of_a_plain_loop(
    tmp_path: Path, accumulate: int, clip: float
) -> None:
    callback = lightning_callback(tmp_path, **probing())
    module = lightning_kind()()
    fit(
        module,
        tmp_path,
        callback,
        batches=STEPS * accumulate,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    losses, gradients = plain_loop(accumulate, clip)
    run = callback.watch.run
    steps, table = run.read("steps"), run.read("gradients")
    assert list(steps["loss"]) == pytest.approx(losses, rel=1e-6)
    assert set(steps["lr"]) == {0.1}
    assert list(table["grad_norm"]) == pytest.approx(flat(gradients), rel=1e-5)
    total = steps["grad_norm"] * steps["clip_coefficient"]
    assert list(total) == pytest.approx([clip] * STEPS if clip else steps["grad_norm"], rel=1e-4)
    assert list(run.read("layers")["layer"]) == ["net.0", "net.3"]
    assert list(run.read("signal")["step"].unique()) == [0, 2, 4, 6]
    assert nothing_is_hooked(module)


def test_a_run_that_lightning_trained_is_like_any(tmp_path: Path) -> None:
    callback = lightning_callback(tmp_path, **probing())
    fit(lightning_kind()(), tmp_path, callback)
    run = the_run(tmp_path)
    assert run.path == tmp_path / "run"
    assert (run.status(), run.read_manifest()["outcome"]) == ("finished", f"watched {STEPS} steps")
    assert "watched: Classifier" in run.config.read_text()
    assert [
        one["name"] for one in run.read_summary()["verdicts"]
    ] == callback.watch.diagnosis().names
    assert str(run.name) in str(make_report([run.path], format="json").output)


@pytest.mark.parametrize("settings", [probing(), {}], ids=["probed", "without probe"])
def test_lightning_trains_the_same_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    kind = lightning_kind()
    seen = fit(kind(0.3), tmp_path, lightning_callback(tmp_path, **settings))
    random = torch.get_rng_state()
    assert same_weights(seen, fit(kind(0.3), tmp_path))
    assert torch.equal(random, torch.get_rng_state())
    assert not same_weights(seen, kind(0.3))


def parts_alone() -> Any:
    """One that calls only a part of itself, by hand."""

    class Parts(lightning_kind()):  # type: ignore[misc]
        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    return Parts()


@pytest.mark.parametrize(("part", "prefix"), [(None, "net."), ("net", "")])
def test_parts_may_be_called_alone(tmp_path: Path, part: str | None, prefix: str) -> None:
    """16 examples at 5 % of the training examples' work, in batches of 8: every 40 steps."""
    callback = lightning_callback(tmp_path, module=part, **probing(every="auto"))
    fit(parts_alone(), tmp_path, callback, batches=43)
    run = the_run(tmp_path)
    assert list(run.read("layers")["layer"]) == [f"{prefix}0", f"{prefix}3"]
    assert list(run.read("signal")["step"].unique()) == [0, 40, 43]


def test_what_lightning_cannot_watch_is_refused_before_it_trains(tmp_path: Path) -> None:
    kind = lightning_kind()
    with pytest.raises(ConfigError, match=r"module='nte'.* has no attribute `nte`"):
        fit(kind(), tmp_path, lightning_callback(tmp_path, module="nte"))

    class Headless(kind):  # type: ignore[misc, valid-type]
        from lightning.pytorch import LightningModule

        forward = LightningModule.forward

    with pytest.raises(ConfigError, match="Headless has no forward"):
        fit(Headless(), tmp_path, lightning_callback(tmp_path), num_sanity_val_steps=0)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="probe= needs loss="):
        lightning_callback(tmp_path, probe=examples(4))


@pytest.mark.usefixtures("process_group")
def test_a_module_that_is_spread_over_processes_is_probed(tmp_path: Path) -> None:
    check_spread(lightning_callback(tmp_path, **probing()), tmp_path)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("probed", [True, False])
def test_where_spread_modules_must_be_called_as_they_are_a_part_is_named(
    tmp_path: Path, *, probed: bool
) -> None:
    """What spreads them calls them with what a step takes: no layers, nothing to replay."""
    settings = probing(stop_on_nonfinite=True) if probed else {}
    whole = lightning_callback(tmp_path, **settings)
    with pytest.raises(ConfigError, match="DDPStrategy does not call Classifier as it is"):
        fit(lightning_kind()(), tmp_path, whole, **SPREAD)
    assert not (tmp_path / "run").exists()
    check_spread(lightning_callback(tmp_path, module="net", **settings), tmp_path)


def check_spread(callback: Any, folder: Path) -> None:
    fit(lightning_kind()(), folder, callback, **SPREAD)
    _, gradients = plain_loop(1)
    found = list(callback.watch.run.read("gradients")["grad_norm"])
    assert found == pytest.approx(flat(gradients), rel=1e-5)


def test_an_error_in_lightnings_training_is_left_on_record(tmp_path: Path) -> None:
    module = lightning_kind()(fails_at=3)
    with pytest.raises(ZeroDivisionError):
        fit(module, tmp_path, lightning_callback(tmp_path, **probing()))
    run = the_run(tmp_path)
    assert run.status() == "failed"
    assert run.read_manifest()["error"] == "ZeroDivisionError: in the middle"
    assert list(run.read("steps")["step"]) == [0, 1, 2]
    assert nothing_is_hooked(module)


def test_lightning_stops_before_an_update_that_is_not_finite(tmp_path: Path) -> None:
    module = lightning_kind()()
    with torch.no_grad():
        module.net[3].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"weight of net\.3 .* at step 0"):
        fit(module, tmp_path, lightning_callback(tmp_path, stop_on_nonfinite=True))
    assert bool(torch.isfinite(module.net[0].weight).all())


def test_figures_under_lightnings_scaler_are_unscaled(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    callback = lightning_callback(tmp_path)
    fit(lightning_kind()(), tmp_path, callback, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    table, (_, gradients) = callback.watch.run.read("gradients"), plain_loop(1)
    for column in ("grad_norm", "clipped_grad_norm"):
        assert list(table[column]) == pytest.approx(flat(gradients), rel=0.05)


def test_steps_by_hand_need_not_tell_their_loss(tmp_path: Path) -> None:
    class ByHand(lightning_kind()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            stepper = self.optimizers()
            stepper.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            stepper.step()

    callback = lightning_callback(tmp_path, **probing())
    fit(ByHand(), tmp_path, callback)
    run = callback.watch.run
    _, gradients = plain_loop(1)
    assert list(run.read("gradients")["grad_norm"]) == pytest.approx(flat(gradients), rel=1e-5)
    assert "diverged" not in callback.watch.diagnosis().names
    assert run.status() == "finished"
    cells = [line.split(",")[2] for line in run.table_path("steps").read_text().splitlines()]
    assert cells == ["loss", *[""] * STEPS]


# --- Hugging Face ------------------------------------------------------------------------------


def sentences(count: int = BATCH) -> Tensor:
    return torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(3))


def followers(words: Tensor) -> Tensor:
    """Of what is to be said, the first word follows none: it is not counted."""
    return torch.cat([words.new_tensor([-100]), words[1:]])


def language_model(dropout: float = 0.0) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**shape, **drops, bos_token_id=0, eos_token_id=0))


def next_word_loss(outputs: Any, words: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


def train(
    model: Any,
    folder: Path,
    callbacks: Any = (),
    rows: Any = None,
    kind: Any = None,
    **settings: Any,
) -> Any:
    """Each step sees all examples, so their order does not matter."""
    from transformers import TrainingArguments

    usual = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": STEPS,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **(usual | settings),
    )
    rows = rows or [{"input_ids": one, "labels": followers(one)} for one in sentences()]
    trainer = (kind or importlib.import_module("transformers").Trainer)(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


def huggingface_callback(folder: Path, **settings: Any) -> Any:
    from gradexp.watching.transformers import GradexpCallback

    return GradexpCallback(out=folder / "run", **settings)


def reading(**more: Any) -> dict[str, Any]:
    words = sentences(16)
    probe = ({"input_ids": words, "labels": words, "use_cache": False}, words)
    return {"probe": probe, "loss": next_word_loss, "every": 2, **more}


def plain_language_loop(layers: list[str]) -> tuple[list[float], list[list[float]]]:
    model = language_model().train()
    weights = [dict(model.named_parameters())[f"{name}.weight"] for name in layers]
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], []
    for _ in range(STEPS):
        loss = next_word_loss(model(sentences()), sentences())
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(norms([one.grad for one in weights]))
        stepper.step()
        stepper.zero_grad()
    return losses, gradients


@pytest.mark.parametrize("settings", [reading(), {}], ids=["probed", "without probe"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainers_steps_are_those_of_a_plain_loop(
    tmp_path: Path, accumulate: int, settings: dict[str, Any]
) -> None:
    callback, model = huggingface_callback(tmp_path, **settings), language_model()
    trainer = train(
        model,
        tmp_path,
        [callback],
        per_device_train_batch_size=BATCH // accumulate,
        gradient_accumulation_steps=accumulate,
    )
    run = callback.watch.run
    layers = list(run.read("layers")["layer"])
    assert len(layers) == 2 + 2 * 4  # words and places; per block two maps of attention, two after
    losses, gradients = plain_language_loop(layers)
    steps, table = run.read("steps"), run.read("gradients")
    assert list(steps["loss"]) == pytest.approx(losses, rel=1e-5)
    logged = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert list(steps["loss"]) == pytest.approx(logged, rel=1e-6)
    assert list(table["grad_norm"]) == pytest.approx(flat(gradients), rel=1e-4)
    assert set(steps["lr"]) == {0.1}
    assert list(run.read("signal")["step"].unique()) == ([0, 2, 4, 6] if settings else [])
    assert nothing_is_hooked(model)
    assert run.status() == "finished"
    assert "name: sgd" in run.config.read_text()
    assert callback.watch.diagnosis().names == ["healthy"]


def test_a_trainer_trains_the_same_to_the_bit(tmp_path: Path) -> None:
    """With dropout, clipping, evaluations between, and a schedule."""
    callback = huggingface_callback(tmp_path, **reading())
    settings = {
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.5,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    seen = language_model(0.1)
    train(seen, tmp_path, [callback], **settings)
    random = torch.get_rng_state()
    bare = language_model(0.1)
    train(bare, tmp_path, **settings)
    assert same_weights(seen, bare)
    assert torch.equal(random, torch.get_rng_state())
    steps = callback.watch.run.read("steps")
    total = steps["grad_norm"] * steps["clip_coefficient"]
    assert list(total) == pytest.approx([0.5] * STEPS, rel=1e-4)
    assert list(steps["lr"]) == pytest.approx([5e-5 * 2000 * (1 - s / STEPS) for s in range(STEPS)])


def test_the_last_look_is_at_the_last_weights_not_the_best(tmp_path: Path) -> None:
    def last_rows(folder: Path, **settings: Any) -> Any:
        callback = huggingface_callback(folder, **reading(every=4))
        train(language_model(), folder, [callback], **settings)
        return callback.watch.run.read("signal").query(f"step == {STEPS}")["pre_std"].to_numpy()

    kept = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 2,
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # so the first that is kept counts as the best
    }
    assert np.array_equal(last_rows(tmp_path / "best", **kept), last_rows(tmp_path / "last"))


def test_every_layer_of_a_bert_is_probed(tmp_path: Path) -> None:
    """Its embedding of places is one for all examples, that of kinds one for each."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 8}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**shape, num_labels=CLASSES))
    words, classes = sentences(), torch.arange(BATCH) % CLASSES
    callback = huggingface_callback(
        tmp_path,
        probe=((words,), classes),
        loss=lambda outputs, targets: F.cross_entropy(outputs.logits, targets),
    )
    rows = [{"input_ids": one, "labels": label} for one, label in zip(words, classes, strict=True)]
    train(model, tmp_path, [callback], rows, num_train_epochs=1)
    run = callback.watch.run
    signal = run.read("signal").query("step == 0")
    assert len(signal) == len(run.read("layers")) == 3 + 2 * 6 + 2
    assert (signal["pre_std"] > 0).all()
    nameless = {"token_type_embeddings", "position_embeddings"}
    without = set(signal[signal["pre_grad_norm"].isna()]["layer"])
    assert without == {f"bert.embeddings.{one}" for one in nameless}
    assert "diverged" not in callback.watch.diagnosis().names


def test_a_loss_that_the_output_does_not_hold_stays_empty(tmp_path: Path) -> None:
    callback = huggingface_callback(tmp_path, **reading())
    train(language_model(), tmp_path, [callback], label_smoothing_factor=0.1)
    run = callback.watch.run
    assert run.read("steps")["loss"].isna().all()
    assert (run.read("gradients")["grad_norm"] > 0).all()
    assert run.status() == "finished"
    assert "diverged" not in callback.watch.diagnosis().names


def test_of_two_losses_nobody_knows_what_was_made(tmp_path: Path) -> None:
    from transformers import Trainer

    class Twice(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_others: Any, **_more: Any) -> Tensor:
            return model(**inputs).loss + 2 * model(**inputs).loss

    callback = huggingface_callback(tmp_path)
    train(language_model(), tmp_path, [callback], kind=Twice)
    assert callback.watch.run.read("steps")["loss"].isna().all()


@cache
def bomb() -> Any:
    from transformers import TrainerCallback

    class Bomb(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _args: Any, state: Any, *_control: Any, **_others: Any) -> None:
            if state.global_step == 3:
                raise ZeroDivisionError("in the middle")

    return Bomb()


def was_left_on_record(folder: Path, error: str) -> bool:
    run = the_run(folder)
    found = (run.status(), run.read_manifest()["error"], list(run.read("steps")["step"]))
    return found == ("failed", error, [0, 1, 2])


def test_as_a_context_the_callback_sees_an_error(tmp_path: Path) -> None:
    model = language_model()
    with (
        pytest.raises(ZeroDivisionError),
        huggingface_callback(tmp_path, **reading()) as callback,
    ):
        train(model, tmp_path, [callback, bomb()])
    assert was_left_on_record(tmp_path, "ZeroDivisionError: in the middle")
    assert nothing_is_hooked(model)


def test_as_a_context_without_an_error_it_is_closed(tmp_path: Path) -> None:
    with huggingface_callback(tmp_path) as callback:
        train(language_model(), tmp_path, [callback], num_train_epochs=1)
    assert the_run(tmp_path).read_manifest()["outcome"] == "watched 1 steps"


def _trained_until_an_error(folder: Path, seen: Callable[[Exception], None]) -> Any:
    model = language_model()
    try:
        train(model, folder, [huggingface_callback(folder, **reading()), bomb()])
    except ZeroDivisionError as error:
        seen(error)
        traceback.clear_frames(error.__traceback__)
    return model


@pytest.mark.parametrize("known", [True, False])
def test_a_callback_that_is_given_up_closes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    """As when a program ends by an error; if the error is another's, it is not taken for one."""

    def seen(error: Exception) -> None:
        monkeypatch.setattr(sys, "last_value", error if known else KeyError("x"), raising=False)

    model = _trained_until_an_error(tmp_path, seen)
    gc.collect()
    said = (
        "ZeroDivisionError: in the middle" if known else "RunError: training did not reach its end"
    )
    assert was_left_on_record(tmp_path, said)
    assert nothing_is_hooked(model)


def test_training_again_is_another_run(tmp_path: Path) -> None:
    callback, model = huggingface_callback(tmp_path), language_model()
    with pytest.raises(ZeroDivisionError):
        train(model, tmp_path, [callback, bomb()])
    train(model, tmp_path, [callback], num_train_epochs=2)
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run-2")
    assert first.read_manifest()["error"] == "RunError: training began anew before it had ended"
    assert second.read_manifest()["outcome"] == "watched 2 steps"
    assert list(first.read("steps")["step"]) == [0, 1, 2]
    assert nothing_is_hooked(model)


# --- what trainers ask of a watch --------------------------------------------------------------

Stepping = Callable[[torch.optim.Optimizer, Callable[[], Tensor]], Any]


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (torch.optim.SGD, lambda stepper, closure: stepper.step(closure)),
        (torch.optim.SGD, lambda stepper, closure: stepper.step(closure=closure)),
        (torch.optim.LBFGS, lambda stepper, closure: stepper.step(closure)),
    ],
)
def test_a_step_may_take_a_closure(tmp_path: Path, kind: Any, step: Stepping) -> None:
    """The gradient is that of its first call."""
    net, (inputs, targets) = a_net(), examples(BATCH)
    weights = [net[0].weight, net[3].weight]
    stepper = kind(net.parameters(), lr=0.1)
    gradients, updates = [], []
    with watch(net, stepper, out=tmp_path / "run") as watched:
        for _ in range(3):
            calls = []

            def closure() -> Tensor:
                stepper.zero_grad()
                loss = F.cross_entropy(net(inputs), targets)
                loss.backward()
                calls.append(norms([one.grad for one in weights]))  # noqa: B023
                return loss

            before = [one.detach().clone() for one in weights]
            loss = step(stepper, closure)
            watched.step(loss)
            gradients.append(calls[0])
            pairs = zip(weights, before, strict=True)
            updates.append(norms([one.detach() - old for one, old in pairs]))
    table = watched.run.read("gradients")
    assert list(table["grad_norm"]) == pytest.approx(flat(gradients), rel=1e-5)
    assert list(table["update_norm"]) == pytest.approx(flat(updates), rel=1e-4)


def watched_steps(net: nn.Module, folder: Path, losses: list[bool]) -> RunDir:
    """A run of as many steps; where False, the loss is not told."""
    trained = [one for one in net.parameters() if one.requires_grad]
    stepper, (inputs, targets) = torch.optim.SGD(trained, lr=0.1), examples(BATCH)
    with watch(net, stepper, out=folder / "run", **probing()) as watched:
        for told in losses:
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            watched.step(loss if told else None)
    return watched.run


def test_a_loss_that_was_told_is_kept_beside_one_that_was_not(tmp_path: Path) -> None:
    bare = watched_steps(a_net(), tmp_path / "bare", [True] * 4).read("steps")["loss"]
    run = watched_steps(a_net(), tmp_path / "some", [True, False, False, True])
    loss = run.read("steps")["loss"]
    assert list(loss.isna()) == [False, True, True, False]
    assert list(loss.dropna()) == [bare[0], bare[3]]
    assert run.status() == "finished"
    assert run.read_summary()["nonfinite"] is None


def test_a_layer_that_is_frozen_is_no_sign_of_divergence(tmp_path: Path) -> None:
    net = a_net()
    net[0].requires_grad_(requires_grad=False)
    run = watched_steps(net, tmp_path, [True] * 8)
    assert run.read("gradients").query("layer_index == 1")["grad_norm"].isna().all()
    assert [one.name for one in judge(run)] == ["healthy"]


def test_a_loss_that_is_not_finite_still_is_one(tmp_path: Path) -> None:
    net = a_net()
    with torch.no_grad():
        net[3].bias[0] = torch.nan
    run = watched_steps(net, tmp_path, [True, False])
    assert run.status() == "diverged"
    assert "diverged" in [one.name for one in judge(run)]


def test_layers_without_gradient_per_example_are_passed_over() -> None:
    norms_ = np.array([[np.nan, 1e-3, 1.0], [np.nan, np.nan, 1.0]])
    depth = over_depth(norms_, np.array([False, True, True]))
    assert depth.drop[0] == pytest.approx(3.0)
    assert (depth.drop_from[0], depth.drop_to[0]) == (2, 1)
    assert np.isnan(depth.drop[1])


# --- who needs them ----------------------------------------------------------------------------


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_trainer_is_imported_by_its_callback_alone(library: str) -> None:
    package = ROOT / "gradexp"
    of_callback = {library, f"gradexp.watching.{library}"}
    owners = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] == library or name in of_callback
    }
    assert owners == {f"watching/{library}.py"}
