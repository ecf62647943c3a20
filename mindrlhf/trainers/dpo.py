"""Direct preference optimisation: what a step, an evaluation and a checkpoint of the loop are."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Callable

import numpy as np
from mindspore import Parameter, Tensor

from mindrlhf.cells.preference import AUX_LOSS, SUMS
from mindrlhf.checkpoint import store
from mindrlhf.config.load import to_dict
from mindrlhf.config.schema import Config
from mindrlhf.data.batches import Counts, PreferenceBatches, batch_shape, count, split_micro_batches
from mindrlhf.data.records import Pair, PairRecords
from mindrlhf.data.rows import COLLATIONS, Rows
from mindrlhf.parallel.layout import Layout
from mindrlhf.parallel.strategy import STRATEGY, remove_beyond, strategy_path, write_strategy
from mindrlhf.runtime.device import Device
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.files import replacing, require_writable, write_json, write_text
from mindrlhf.runtime.logging import log
from mindrlhf.trainers import provenance
from mindrlhf.trainers.frozen import require_same_tokens
from mindrlhf.trainers.graph import build_step, check_layout, fields_of, filler
from mindrlhf.trainers.loop import total_steps
from mindrlhf.trainers.optimizer import build_optimizer, learning_rates, optimizer_state
from mindrlhf.trainers.policy import build_options, check_routing, find_source
from mindrlhf.trainers.reference import PREFIX, OnlineReference
from mindrlhf.trainers.registry import LossSettings, build_preference_cell, loss_settings
from mindrlhf.trainers.weights import Slices, compiled_slices, first_weights, load_slices, named

# Bounds (relative, absolute) of |logp - ref| before the first update, where policy and reference are the same weights.
FIRST_STEP = {"float32": (1e-5, 1e-3), "float16": (2e-2, 1e-3), "bfloat16": (2e-2, 1e-3)}


class DPOTrainer:
    """A `loop.Trainer` on preference records."""

    def __init__(self, config: Config, device: Device, layout: Layout) -> None:
        self.config = config
        self.device = device
        self.layout = layout
        self.loss: LossSettings = loss_settings(config)
        train = provenance.open_records(config.data.train) if config.run_mode == "train" else None
        evaluated = provenance.open_records(config.data.eval) if config.data.eval else None
        opened = [records for records in (train, evaluated) if records is not None]
        self.shape = batch_shape(opened, config.data.seq_len)
        self.micro, self.passes = split_micro_batches(
            config.train.global_batch_pairs, layout.data_parallel, config.train.micro_batch_pairs
        )
        check_layout(config, layout, self.loss)
        self.source = find_source(config)
        check_routing(config, self.source.family, layout)
        self.tokenizer = provenance.find_tokenizer(config, self.source.weights.folder, opened[0])
        options = build_options(config, device, self.shape.length, layout)
        self.dtype = options.compute_dtype
        family = self.source.family
        model_config = family.from_hf_config(self.source.hf_config, options)
        for records in opened:
            provenance.check_record(records, self.tokenizer, self.loss, model_config["vocab_size"])
        require_writable(config.output_dir)
        layout.check_model(family.shape(self.source.hf_config), self.shape.length)
        self.cell = build_preference_cell(family, model_config, self.loss, layout.of_model, config.data.layout)
        self.parameters = named(self.cell)
        self.slices: Slices | None = None  # what this rank holds, where it does not hold everything
        fingerprint = first_weights(self.source, self.parameters, device, layout)
        self.reference = self._online_reference(model_config["vocab_size"])
        if self.reference:
            self.checks_first_step = self.reference.fingerprint == fingerprint
        else:
            same = [provenance.check_reference(records, fingerprint, config, self.loss) for records in opened]
            self.checks_first_step = same[0]
        self.tokens_seen = 0
        self.eval_batches = self._batches(evaluated, whole_set=True) if evaluated else None
        if train is not None:
            self._prepare_training(train)
        if layout.semi_auto:
            self._lay_out()

    def _lay_out(self) -> None:
        """Compile, by which every parameter becomes the slice that this rank holds, and read those slices."""
        device, training = self.device, self.config.run_mode == "train"
        batch = filler(self.config, self.layout, self.shape.length, self.shape.scored)
        rows = tuple(map(Tensor, batch))
        self.cell.set_train(training)
        run, inputs = (self.step, (True, *fields_of(batch, self.layout))) if training else (self.cell, rows)
        found = self.slices = compiled_slices(run, inputs, self.parameters, device.rank, self.layout)
        # Those of another stage of the pipeline are empty here.
        self.parameters = {name: parameter for name, parameter in self.parameters.items() if name in found.boxes}
        load_slices(self.source, self.parameters, found.boxes, device.rank, device.world)
        if self.reference:
            self.reference.lay_out(rows, device, self.layout)

    def _online_reference(self, vocabulary: int) -> OnlineReference | None:
        """The frozen copy, where rlhf.reference asks for one."""
        rlhf = self.config.rlhf
        if self.loss.reference != "online":
            return None
        if self.config.run_mode == "eval" and not rlhf.reference_checkpoint:
            raise UserError(
                "rlhf.reference is online, and an evaluation loads the trained weights alone; name those that training "
                "started from with rlhf.reference_checkpoint"
            )
        source = find_source(self.config, rlhf.reference_checkpoint)
        # A reference that takes part in the policy's updates is kept as exact as the policy.
        options = build_options(
            self.config, self.device, self.shape.length, self.layout, frozen=not rlhf.sync_ref_model
        )
        model_config = source.family.from_hf_config(source.hf_config, options)
        require_same_tokens(source.weights.folder, model_config["vocab_size"], vocabulary)
        return OnlineReference(
            source,
            model_config,
            collation=self.config.data.layout,
            device=self.device,
            layout=self.layout,
            shared=self.loss.objective.needs_shared,
        )

    def _prepare_training(self, records: PairRecords) -> None:
        config = self.config
        self.batches = self._batches(records, shuffle=config.data.shuffle)
        self.steps_per_epoch = self.batches.steps_per_epoch
        steps = total_steps(config, self.steps_per_epoch)
        self.learning_rates = learning_rates(config.optimizer.learning_rate, config.lr_schedule, steps)
        self.optimizer = build_optimizer(self.cell, config.optimizer, self.learning_rates)
        self.step = build_step(self.cell, self.optimizer, config, self.layout, self.passes)
        self.step.set_train()
        log(
            f"{len(records)} pairs, {steps} steps of {config.train.global_batch_pairs}: "
            f"{self.layout.data_parallel} worker(s) x {self.micro} pair(s) x {self.passes} pass(es), "
            f"rows of {self.shape.length} tokens"
        )

    def _batches(self, records: PairRecords, shuffle: bool = False, whole_set: bool = False) -> PreferenceBatches:
        feeders = 1 if self.layout.semi_auto else self.device.world
        return PreferenceBatches(
            records,
            self.shape,
            self.config.train.global_batch_pairs,
            # Under semi-auto parallel every process is given the rows of all, and MindSpore takes its own.
            self.micro * self.layout.data_parallel // feeders,
            worker=self.device.rank if feeders > 1 else 0,
            workers=feeders,
            shuffle=shuffle,
            seed=self.config.seed,
            with_reference=self.loss.reference == "record",
            whole_set=whole_set,
            collation=COLLATIONS[self.config.data.layout],
        )

    def train_step(self, step: int) -> dict[str, float]:
        """Update `step` (from 0); figures of design section 6 over the global batch, computed before the update."""
        batch = self.batches.step(step)
        for number, rows in enumerate(map(self._with_reference, batch.micro_batches), start=1):
            sums, norm, logps = self.step(number == self.passes, *fields_of(rows, self.layout))
            if step == 0 and self.checks_first_step:
                self._check_first_step(rows, self._of_last_stage(logps))
        self.tokens_seen += batch.counts.tokens
        rlhf = self.config.rlhf
        if self.reference and rlhf.sync_ref_model and (step + 1) % rlhf.ref_model_sync_steps == 0:
            self.reference.follow(self.cell, rlhf.ref_model_mixup_alpha)
        return {
            **_figures(self._of_last_stage(sums), batch.counts),
            "grad_norm": float(norm.asnumpy()),
            "learning_rate": float(self.learning_rates[step]),
            "padding_fraction": batch.padding_fraction,
        }

    def _of_last_stage(self, found: Tensor) -> np.ndarray:
        """What a step returned, on every worker: in a pipeline only the workers of the last stage have it."""
        array = found.asnumpy()
        if self.layout.pipeline_stage == 1:
            return array
        last = self.device.world - 1
        return self.device.all_sum(array if self.device.rank == last else np.zeros_like(array))

    def _check_first_step(self, rows: Rows, logps: np.ndarray) -> None:
        """The reference is, by its fingerprint, what training starts from: so must be its log-probs."""
        recorded = self.dtype if self.reference else self.batches.records.provenance["dtype"]
        place_of = "its frozen copy" if self.reference else self.config.data.train
        relative, absolute = max(FIRST_STEP[self.dtype], FIRST_STEP[recorded])
        difference = np.abs(logps - rows.ref_logps) * rows.pair_mask.repeat(2, axis=1)
        excess = difference - (relative * np.abs(rows.ref_logps) + absolute)
        if excess.max() > 0:
            place = np.unravel_index(int(excess.argmax()), excess.shape)
            raise UserError(
                f"the weights are those of the reference, and yet a log-prob is {logps[place]:.4f} where "
                f"{place_of} has {rows.ref_logps[place]:.4f} (computed in {self.dtype} and {recorded}); "
                f"preprocess again with this version"
            )

    def _with_reference(self, rows: Rows) -> Rows:
        return self.reference.fill(rows) if self.reference else rows

    def evaluate(self, write: Callable[[dict[str, Any]], None] | None = None) -> dict[str, float] | None:
        """The figures over the whole evaluation set, or None where there is none.

        `write` is given one row of figures per pair, in the order of the set, the same on every worker.
        """
        if self.eval_batches is None:
            return None
        self.cell.set_train(False)
        sums = np.zeros(self.cell.num_sums, np.float64)
        for number in range(self.eval_batches.steps_per_epoch):
            parts = []
            for rows in map(self._with_reference, self.eval_batches.step(number).micro_batches):
                _, found, _, figures = self.cell(*map(Tensor, rows))
                sums += found.asnumpy()
                parts.append(figures.asnumpy())
            if write:
                everyone = self._of_all_workers(np.concatenate(parts))
                for pair, figures in zip(self.eval_batches.pairs(number), everyone):
                    write(_row(pair, figures))
        self.cell.set_train()
        if not self.layout.semi_auto:
            sums = self.device.all_sum(sums)
        assert self.eval_batches.whole is not None
        return _figures(sums, self.eval_batches.whole)

    def _of_all_workers(self, mine: np.ndarray) -> np.ndarray:
        """The rows of every worker's share of a global batch, in order."""
        if self.layout.semi_auto:
            return mine
        places = np.zeros((self.device.world, *mine.shape), mine.dtype)
        places[self.device.rank] = mine
        return self.device.all_sum(places).reshape(-1, mine.shape[1])

    def _trained(self) -> dict[str, Parameter]:
        """The parameters that this rank holds, with their moments, and the count of updates."""
        return {**self.parameters, **optimizer_state(self.optimizer, self.parameters)}

    def state(self) -> dict[str, np.ndarray]:
        """Weights, moments, the optimizer's step, the tokens seen, and a reference that follows the policy."""
        arrays = {name: value.asnumpy() for name, value in self._trained().items()}
        if self.reference and self.config.rlhf.sync_ref_model:
            arrays.update(self.reference.state())
        return {**arrays, "tokens_seen": np.asarray([self.tokens_seen], np.int64)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up a `state`, complete or refused."""
        arrays = dict(arrays)
        self.tokens_seen = int(arrays.pop("tokens_seen")[0])
        if self.reference and self.config.rlhf.sync_ref_model:
            names = [name for name in arrays if name.startswith(PREFIX)]
            self.reference.restore({name: arrays.pop(name) for name in names})
        store.load_parameters(
            self._trained(),
            arrays,
            "the checkpoint to resume from",
            sliced=self.layout.semi_auto,
        )

    def identity(self) -> dict[str, Any]:
        """What a continued run shares with the one that saved: data and its order, shapes, loss, optimizer."""
        config = to_dict(self.config)
        sections = ("rlhf", "optimizer", "lr_schedule")
        settings = {f"{section}.{key}": value for section in sections for key, value in config[section].items()}
        made = self.batches.records.provenance
        return {
            **settings,
            **{f"the record's {key}": made[key] for key in made.keys() - {"version", "tokenizer_path"}},
            "the record's pairs": len(self.batches.records),
            "reference": self.reference.fingerprint if self.reference else None,
            "seed": self.config.seed,
            "data.shuffle": self.config.data.shuffle,
            "train.global_batch_pairs": self.config.train.global_batch_pairs,
            "train.max_grad_norm": self.config.train.max_grad_norm,
            "total_steps": len(self.learning_rates) if self.config.lr_schedule.type != "constant" else None,
            "workers": self.device.world if self.layout.semi_auto else None,
            "layout": str(self.layout) if self.layout.semi_auto else None,
        }

    def save(self, folder: Path, step: int) -> Path:
        """Weights after `step` updates, strategy, config, tokenizer files under `folder`; its checkpoint_network."""
        device = self.device
        arrays = {name: parameter.asnumpy() for name, parameter in self.parameters.items()}
        network = store.write_network(
            folder,
            arrays,
            step=step,
            rank=device.rank,
            world=device.world,
            barrier=device.barrier,
            replicated=not self.layout.semi_auto,
            save=device.of_first(uuid.uuid4().hex),
            boxes=self.slices.boxes if self.slices else None,
        )
        strategy = strategy_path(folder / STRATEGY, device.rank)
        if self.slices:
            with replacing(strategy) as temporary:
                temporary.write_bytes(self.slices.strategy)
        else:
            write_strategy(strategy, {name: array.shape for name, array in arrays.items()}, device.world)
        if device.rank == 0:
            remove_beyond(strategy.parent, device.world)
        if device.rank == 0:
            store.carry_files(self.source.weights.folder, network, self.tokenizer.files if self.tokenizer else ())
            if self.tokenizer and not self.tokenizer.template_is_own:
                # What was trained is asked the way its data were written.
                write_text(network / "chat_template.jinja", self.tokenizer.template)
            # What was trained, which model.config of the yaml may have changed.
            architectures = [self.source.family.architectures[0]]
            write_json(network / "config.json", {"architectures": architectures, **self.source.hf_config})
        device.barrier()
        return network


def _row(pair: Pair, figures: np.ndarray) -> dict[str, Any]:
    """A pair's figures; its loss is what it would be if the pair were the whole batch."""
    counts = count([pair])
    by_name = dict(zip(SUMS, figures.astype(float).tolist()))
    by_name["loss/chosen_tokens"] /= counts.chosen_tokens
    tokens = {"tokens/chosen": counts.chosen_tokens, "tokens/rejected": counts.rejected_tokens}
    found = _figures(np.array(list(by_name.values())), counts)
    del found["num_pairs"]
    return {"pair_id": pair.pair_id, **found, **tokens}


def _figures(sums: np.ndarray, counts: Counts) -> dict[str, float]:
    """Sums over real pairs as the means that design section 6 names."""
    by_name = dict(zip((*SUMS, AUX_LOSS), sums.tolist()))
    figures = {"loss": by_name.pop("loss/pairs") + by_name.pop("loss/chosen_tokens")}
    chosen, rejected = by_name.pop("logits/chosen"), by_name.pop("logits/rejected")
    figures.update({name: value / counts.pairs for name, value in by_name.items()})
    figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
    figures["logits/chosen"] = chosen / counts.chosen_tokens
    figures["logits/rejected"] = rejected / counts.rejected_tokens
    return {**figures, "num_pairs": counts.pairs}
