"""Everything a training run is made of, built from the flags: model, data, optimizer, executor, position."""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import poptorch
import torch

import custom_ops
from data.bad_data import BadData
from data.loading.corpus_tokenizer import tokenizer_json
from data.loading.datasets import MmapDataset, make_sampler
from model import placement, ranks
from model.config import parameter_count
from model.disk_space import CheckpointNotWritten
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import forward_options, instance, local_replicas, reads_samples, training_options
from model.pretraining import PretrainingModel
from training import state as training_state
from training.arithmetic import samples_per_call
from training.early_stopping import EarlyStopping
from training.folder_lock import claim
from training.inputs import read_inputs
from training.label_counts import Call, LabelCounter
from training.loader import make_loader
from training.log.curves import CURVES_FILE, held_out_losses, lacks_validation
from training.log.gradient_norm import loss_scale
from training.optimization import course_note, last_rate, make_optimizer, make_schedule, warmup_length
from training.program import TrainingProgram
from training.save_folder import BEST, SaveFolder, find_latest, names_due
from training.sequence_warmup import SequenceWarmup
from training.sharing import alone, join, samples_of_this_process
from training.time_limit import TimeLimit
from training.validation import Validator

# Of a checkpoint, a parameter: its value in half, and in the state of the run at least one number of four bytes.
_LEAST_BYTES = 2 + 4


def place_model(gpt2: GPT2LMHeadModel, args: argparse.Namespace) -> PretrainingModel:
    """The objective over the placed model, in half."""
    for line in placement.place(gpt2, args.layers_per_ipu, training=True):
        print(line)
    placement.recompute(gpt2, args.recompute_checkpoint_layers)
    placement.serialize_head(gpt2, args.embedding_serialization_factor)
    placement.outline(gpt2)
    if args.custom_ops:  # the residual-add pattern is in the library too
        custom_ops.load()
    serialized = args.serialized_seq_len if args.enable_sequence_serialized else None
    end_id = gpt2.config.end_of_text() if args.document_boundaries == "isolated" else None
    return PretrainingModel(gpt2, serialized, args.remap_logit, end_id).half().train()


def state_to_resume(args: argparse.Namespace) -> dict[str, Any] | None:
    """What --resume latest finds, which then is args.pretrained_checkpoint; in the first process alone, None in others.

    Its folder for checkpoints is claimed for this run.
    """
    with ranks.first_before_others():  # which may mend what an interrupted save left, but no save under way
        if args.save_model_path and not args.compile_only and ranks.is_first():
            claim(Path(args.save_model_path))
        state = find_latest(args) if ranks.is_first() else None
    # What the first process has found to be whole is what all of them resume.
    latest = ranks.of_first(args.pretrained_checkpoint if state is not None else None)
    if latest is not None:
        args.pretrained_checkpoint, args.resume_training_from_checkpoint = latest, True
    return state


def folder_of(
    args: argparse.Namespace, resumed: Path | None, argv: Sequence[str], parameters: int
) -> SaveFolder | None:
    """The folder of --save-model-path, if checkpoints are to be saved. Raises ValueError if it cannot be used."""
    if not args.save_model_path or args.compile_only:
        return None
    with ranks.first_before_others():
        folder = SaveFolder(Path(args.save_model_path), resumed, args.overwrite, argv)
        if args.on_save_error == "stop":
            folder.check_room(_LEAST_BYTES * parameters)
    return folder


class TrainingRun:
    """A training run: everything it is made of, where it stands, and how it is saved.

    Raises ValueError, whose `args` are the problems, for checkpoints, data and folders that cannot be used.
    """

    def __init__(self, args: argparse.Namespace, argv: Sequence[str] = (), started: float | None = None) -> None:
        """`argv` is the command line of `args`, for the commands that messages give; `started` the time.monotonic() at
        the start of the program, from which --time-limit counts.
        """
        join(args)
        self.args, self.samples_a_call = args, samples_per_call(args)
        state = state_to_resume(args)
        with ranks.first_before_others():
            state, tokenizer, gpt2, self.samples, held_out = read_inputs(args, state)
        self.approximate = self.samples.approximate or (held_out.approximate if held_out is not None else "")
        self.sampler = make_sampler(self.samples, args.seed, samples_of_this_process(args))
        self.samples_a_step = self.sampler.shard.group  # of all processes
        self.calls_an_epoch = self.sampler.samples_an_epoch // self.samples_a_step
        self.calls = min(self._planned_calls(), args.training_steps)
        self._schedule_calls = self._calls_of_schedule(state)
        decay_steps = args.lr_decay_steps or self._schedule_calls
        self.warmup_steps = warmup_length(args.lr_warmup, args.lr_warmup_steps, decay_steps)  # in calls
        self._facts = training_state.run_facts(args, gpt2.config, self.samples, self.warmup_steps, decay_steps)
        self._tokenizer = None if tokenizer is None else tokenizer_json(tokenizer)
        resumed = Path(args.pretrained_checkpoint) if state is not None else None
        if state is not None:
            training_state.check_facts(state, self._facts, resumed)
        what = {"--training-steps": self.calls, "the checkpoint to resume": str(resumed)}
        ranks.check_same({**self._facts, **what, "torch": torch.__version__, "poptorch": poptorch.__version__})
        self.folder = folder_of(args, resumed, argv, parameter_count(gpt2.config))
        self.best_loss = math.inf if resumed is None or self.folder is None else self.folder.best_loss()

        if args.document_boundaries == "isolated":
            self.samples.check_document_ends(gpt2.config.end_of_text())
        print(self.samples.summary())
        if self.approximate:
            print(f"APPROXIMATE: {self.approximate}. No figure of this run stands beside those of other runs")
        self.lengths = SequenceWarmup.of(args)
        for line in self.lengths.table(self.calls, self.samples_a_call):
            print(line)
        self.model = place_model(gpt2, args)
        self.optimizer = self._make_optimizer()
        floor = args.min_learning_rate / args.learning_rate if args.min_learning_rate else 0.0
        self.schedule = make_schedule(self.optimizer, args.lr_schedule, self.warmup_steps, decay_steps, floor)
        begun = time.monotonic() if started is None else started
        self.limit = TimeLimit(args.time_limit, begun, parameter_count(gpt2.config))
        self.position = training_state.Position()
        self.keep_numerics: Callable[[dict[str, Any]], None] = lambda chosen: None  # told with each checkpoint
        self.last_checkpoint: Path | None = None
        self.interrupted = False
        rng_state = None if state is None else self._restore(state, resumed)
        note = course_note(args.lr_schedule, decay_steps, self.calls, args.min_learning_rate)
        if note is not None:
            print(note)
        self.first_step = self.last_saved_step = self.position.step
        earlier = held_out_losses(self.folder.path / CURVES_FILE, self.first_step) if self._goes_on else []
        self.early_stopping = EarlyStopping(args.early_stopping, earlier)
        self.stopped_early = False

        self._options = training_options(args)
        self._labels = LabelCounter(
            self.samples,
            self.sampler,
            self.model.counted,
            iterations=args.device_iterations,
            micro_batches=args.gradient_accumulation * local_replicas(args),
            uneven=self._uneven,
        )
        self.program = TrainingProgram(args, self.model, self._options, self.optimizer, rng_state)
        self.validator: Validator | None = None
        if held_out is not None:
            shared = instance(), reads_samples()
            self.validator = Validator(
                self.model, held_out, lambda: forward_options(args), args.batch_size, self.executor, *shared
            )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        args = self.args
        return make_optimizer(
            args.optimizer,
            self.model,
            args.learning_rate,
            args.weight_decay,
            1.0 if args.auto_loss_scaling else args.loss_scaling,
            eps=args.adam_epsilon,
            betas=args.adam_betas,
            gradient_clipping=args.gradient_clipping,
            tensor_clipping=args.tensor_gradient_clipping,
            sgd_momentum=args.sgd_momentum,
            decay_groups=args.weight_decay_groups,
        )

    def _restore(self, state: dict[str, Any], resumed: Path) -> list[int]:
        """Goes on where the checkpoint `resumed` was written, and says where that is. Returns its random numbers."""
        self.position, self.last_checkpoint = training_state.restore(state, self.optimizer, self.schedule), resumed
        print(
            f"resuming from {resumed}: {self.position.step:,} of {self.calls:,} steps are done; on with sample "
            f"{self.position.samples:,} of epoch {self.position.epoch}"
        )
        for line in training_state.loss_notes(state, self._uneven and self.samples_a_step > self.args.batch_size):
            print(line)
        return state["rng_state"].tolist()

    def _planned_calls(self) -> int:
        """The calls that --epochs asks for."""
        if not isinstance(self.samples, MmapDataset):
            return self.args.epochs * self.calls_an_epoch
        samples = len(self.samples)  # over all passes
        if "epochs" in self.args.typed or "training_steps" not in self.args.typed:
            samples = min(samples, self.args.epochs * self.samples.samples_a_pass)
        return samples // self.samples_a_step

    def _calls_of_schedule(self, state: dict[str, Any] | None) -> int:
        """The calls that the schedule's default lengths are about.

        A constant rate needs none but for the warm-up, which stays as it was when such a run is extended.
        """
        if state is not None and self.args.lr_schedule == "constant":
            return state.get("schedule_calls", self.calls)
        return self.calls

    def done_already(self) -> str:
        """What to say of a resumed run that has no step left."""
        text = f"all {self.calls:,} steps are done already: raise --epochs or --training-steps to go on"
        if self.args.lr_schedule != "constant":
            lengths = " ".join(f"{flag} {self._facts[flag]}" for flag in ("--lr-warmup-steps", "--lr-decay-steps"))
            end = f"{self.args.lr_schedule} course, {last_rate(self.args.min_learning_rate)}"
            text += f", with {lengths} (the learning rate stays at the end of its {end})"
        return text

    @functools.cached_property
    def loader(self) -> poptorch.DataLoader:
        """Made when the first epoch begins: an asynchronous one loads a batch at once, from where the sampler is."""
        return make_loader(self.args, self._options, self.samples, self.sampler)

    @property
    def _uneven(self) -> bool:
        """Whether samples differ in their number of labels."""
        return self.samples.uneven or self.model.end_id is not None

    def batches(self) -> Iterator[Call]:
        """The calls of an epoch, from the sampler's position on. Raises BadData.

        With --async-dataloader they are valid until the next ones are asked for. Of the processes that hold a replica
        together the first one reads the samples: a call takes its inputs.
        """
        begin = self.position.step
        if not reads_samples():
            for number in range(len(self.sampler) // self.sampler.shard.own):
                yield self._empty_call(self.lengths.length(begin + number))
            return
        try:
            yield from self._labels.calls(self.loader, lambda number: self.lengths.length(begin + number))
        except poptorch.Error as error:
            if isinstance(error.__cause__, BadData):  # met by the process of --async-dataloader
                raise error.__cause__ from None
            raise

    @property
    def executor(self) -> poptorch.PoplarExecutor:
        """The training executor, which has the newest weights."""
        return self.program.executor

    def compile(self, call: Call) -> None:
        """Compile for such a call. Where a program for another length was before, time limit and validation follow."""
        before = self.program.length
        self.program.compile(call)
        if before is not None:
            self.limit.calls_grow(self.program.length / before)
            if self.validator is not None:
                self.validator.follow(self.executor)

    def compile_only(self) -> None:
        """Trace the model and check its stages, without a device and without data."""
        self.program.trace(self._empty_call(self.args.max_len))

    def _empty_call(self, length: int) -> Call:
        """Inputs of the right shapes, without samples."""
        samples = self.sampler.shard.own
        ids = torch.zeros(1, 1, dtype=torch.int32).expand(samples, length)
        return Call(ids, ids, torch.ones(samples // self.args.batch_size, 2))

    @property
    def alone(self) -> bool:
        """Whether this is the only process of the run."""
        return alone()

    def to_stop(self, asked: bool) -> bool:
        """Whether a signal `asked` any process to end, time is up for one, or the held-out loss falls no more.

        Every process must call it.
        """
        reasons = [asked, self.limit.reached(), self.early_stopping.reached]
        interrupted, late, early = (share > 0 for share in ranks.means(reasons))
        self.interrupted = self.interrupted or interrupted
        self.stopped_early = self.stopped_early or early
        return interrupted or late or early

    def length(self) -> str:
        """How long the run is: what --compile-only says at the end."""
        return f"{self.calls_an_epoch:,} calls an epoch, {self.calls:,} calls in all"

    def save_if_due(self, epoch: int, epoch_ended: bool, last: bool) -> None:
        """Save the checkpoints that --save-per-steps and --save-per-epochs ask for after this call of `epoch`.

        The `last` call is saved in any case, as step_N if nothing else is due. Raises CheckpointNotWritten, which with
        --on-save-error continue ends a run after its last call only.
        """
        if self.folder is not None:
            for name in names_due(self.args, self.position.step, epoch, epoch_ended, last):
                self._save(name, needed=last)

    def judges(self, first: bool) -> bool:
        """Whether a held-out loss counts for --keep-best, of which the log says that it is the `first` of its step.

        That of the weights that a run begins with does where an earlier start ended before it. Every process must call
        it.
        """
        step, every = self.position.step, self.args.eval_steps
        if step > self.first_step:
            return True
        due = self.position.samples == 0 or step == self.calls or (every and step % every == 0)
        return bool(due) and self._goes_on and ranks.agree(first and ranks.is_first())

    def ended_before_validation(self) -> bool:
        """Whether an earlier start of this run made the last call and ended without its validation.

        Every process must call it.
        """
        if self.validator is None or not self._goes_on:
            return False
        missing = ranks.is_first() and lacks_validation(self.folder.path / CURVES_FILE, self.position.step)
        return ranks.agree(missing)

    @property
    def _goes_on(self) -> bool:
        """Whether the folder has the checkpoints, and the log, of the run that is resumed."""
        return self.position.step > 0 and self.folder is not None and bool(self.folder.written)

    def judge(self, held_out_loss: float) -> None:
        """A held-out loss that counts: it may end the run, or make the checkpoint `best`.

        Raises CheckpointNotWritten.
        """
        self.early_stopping.judge(held_out_loss)
        self.save_if_best(held_out_loss)

    def why_early(self) -> list[str]:
        """What to say of a run that --early-stopping ended."""
        step = f"Stopped after step {self.position.step:,} of {self.calls:,}"
        best = [f"the checkpoint of the lowest is {self.folder.path / BEST}"] if self.folder is not None else []
        return [f"{step}, {self.early_stopping.line()}", *best]

    def save_if_best(self, held_out_loss: float) -> None:
        """--keep-best: a loss below all before it makes this the checkpoint `best`. Raises CheckpointNotWritten."""
        if self.args.keep_best and self.folder is not None and held_out_loss < self.best_loss:
            if self._save(BEST, needed=False, held_out_loss=held_out_loss):
                self.best_loss = held_out_loss

    def check_finite(self, value: float) -> None:
        """Raises RuntimeError if a loss, or a sum of weights, is not finite: nothing is learnt from then on."""
        if math.isfinite(value):
            return
        weights = f"from the weights of {self.last_checkpoint}" if self.last_checkpoint else "from the beginning"
        remedy, scaling = "a lower --learning-rate", self.args.loss_scaling
        if self.args.auto_loss_scaling:
            scaling = loss_scale(self.optimizer)
        else:
            limit = f"half gradients overflow at 65,504 / {scaling:g} = {65504 / scaling:.3g}"
            remedy = f"a lower --loss-scaling ({limit}), --auto-loss-scaling or {remedy}"
        lost = self.position.step - self.last_saved_step
        raise RuntimeError(
            f"step {self.position.step}: the loss or the weights are no longer finite (loss scale {scaling:g}). "
            f"Nothing more is saved, {lost} step{'s'[: lost != 1]} lost; no update was skipped on the way.\n"
            f"HINT: start again {weights} with {remedy}"
        )

    def _save(self, name: str, needed: bool, **further: Any) -> bool:
        """Writes a checkpoint; False if that failed, which --on-save-error continue allows to one not `needed`."""
        # The update after the last loss may have been the one that overflowed.
        own = (weight.detach() for weight in self.model.parameters() if not weight.is_meta)
        self.check_finite(*ranks.means([sum(float(weight.float().sum()) for weight in own)]))
        if isinstance(self.samples, MmapDataset):
            further["ordered_parts"] = list(self.samples.parts)
        directory = self.folder.writes(name)
        further["schedule_calls"] = self._schedule_calls
        if self.approximate:
            further["approximate"] = self.approximate
        parts = (self.model.gpt2, self.executor, self.program.rng_state, self.optimizer, self.schedule)
        try:
            with self.limit.timing("save"):
                writes = ranks.is_first()
                identity = (self._facts, self._tokenizer, writes)
                chosen = training_state.save(directory, *parts, self.position, *identity, **further)
        except CheckpointNotWritten as error:
            ranks.agree(True)
            if needed or self.args.on_save_error == "stop":
                raise
            print(str(error).splitlines()[0], file=sys.stderr, flush=True)
            return False
        if ranks.agree(False):  # the first process could not write it, and says so
            if needed or self.args.on_save_error == "stop":
                raise CheckpointNotWritten(directory, 0, OSError("the first process says why"))
            return False
        print(f"saved {directory}", flush=True)
        self.keep_numerics(chosen)
        if name != BEST:  # which a later one replaces
            self.last_checkpoint, self.last_saved_step = directory, self.position.step
            if ranks.is_first():
                self.folder.prune(self.args.keep_checkpoints)
        return True
