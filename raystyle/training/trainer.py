"""The Hugging Face Trainer on flat batches of packed rows.

The Trainer keeps its step, its optimizer, DDP and DeepSpeed. Five things are raystyle's: which rows a micro-batch holds
(`rows.Order`), where documents end, the loss without whole logits, dropout seeded by place, and checkpoints without
pickle that any number of workers can continue.
"""

import dataclasses
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from raystyle import adapters, generation, models, storage
from raystyle.config import TrainConfig
from raystyle.errors import StorageError, TrainingError
from raystyle.training import attention, checkpoints, gate, guard, hardest, heldout, lora, metrics, sharding, speed
from raystyle.training.loss import IGNORE, summed_cross_entropy
from raystyle.training.rows import Order, Rows, block_lengths
from raystyle.training.streamed import Batches, Seen, Streamed, StreamOrder

METRICS_INTERVAL_S = 2.0
ASK_INTERVAL_S = 10.0  # a spot machine is announced some minutes, of some clouds 30 s, before it goes
METRICS_PAUSE_S = 60.0  # after storage failed to take them
# The proof takes the heads of this many blocks, from as few rows as hold them.
PROOF_BLOCKS, PROOF_ROWS, PROOF_TOKENS_PER_BLOCK = 4, 4, 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What every worker is given, in plain values: Ray carries it as a dict."""

    config: dict[str, Any]
    prepared_dir: str
    manifest: dict[str, Any]
    steps: int
    warmup_steps: int
    checkpoint_steps: list[int]
    layer_counts: dict[str, int]
    use_gpu: bool
    is_validated: bool = False  # each checkpoint is evaluated beside training
    start_digest: str | None = None  # of the adapter at `lora_path` that training continues from
    model_flops: tuple[float, float] = (0.0, 0.0)  # see `Plan`
    stream_shards: int = 0  # of a pass over the inputs, where rows are streamed
    # The base's parameters and the trained ones, as the plan counts them: a worker may hold a shard, or 4 bits of each.
    parameters: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Worker:
    """One worker among all, under Ray Train or without it.

    `hand_over(step, directory)` is called by every worker at each checkpoint; rank 0's directory holds it, others have
    None. It returns when the checkpoint is in the run's storage. `batches` are the worker's rows where they are streamed.
    `is_leaving` asks whether a worker's machine is announced to go; all workers ask at the same time.
    """

    rank: int
    num_workers: int
    hand_over: Callable[[int, str | None], None]
    batches: Batches | None = None
    is_leaving: Callable[[], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What the trainer's own parts need to know of the run."""

    config: TrainConfig
    task: Task
    worker: Worker
    order: Order | StreamOrder
    tokenizer: Any
    implementation: str
    callbacks: tuple[Any, ...]
    step: dict[str, Any] = dataclasses.field(default_factory=dict)  # how a step computes, for metrics.jsonl


class PackedTrainer(transformers.Trainer):
    """The Trainer on flat batches of packed rows. Each override says what of the original it replaces."""

    model: Any
    train_dataset: Any

    def __init__(self, *, run: Run, **arguments: Any) -> None:
        self.run = run
        gpu = torch.cuda.get_device_name() if run.task.use_gpu else ""
        self.meter = speed.Meter(*run.task.model_flops, speed.peak_flops(gpu))
        self.metrics_written_s = time.monotonic()
        self.micro_batches: list[tuple[int, torch.Tensor, int]] = []
        self.kept_losses: list[float] = []
        self.skipped = self.skipped_in_a_row = 0
        self.asks = self.is_told = False  # whether a machine is going to leave; that one is
        self.asked_s = time.monotonic()
        self.hidden_TD: Any = None
        self.evaluated: metrics.Records = {}
        self.reading = threading.Thread()
        # Now, while the folder is what was loaded from it.
        self.base_identity = models.identity(run.config.model_name_or_path)
        super().__init__(**arguments, callbacks=[SaveAt(run.task.checkpoint_steps, self.is_leaving), *run.callbacks])
        self.remove_callback(transformers.PrinterCallback)
        base = self.model.get_base_model()
        base.get_decoder().register_forward_hook(self._keep_hidden)
        self.head = base.get_output_embeddings()
        # The Trainer then counts all labels that are not -100 (the first of a flat batch always is), over all workers.
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> Any:
        """One epoch that spans the run, in `Order`; accelerate's own sharding would tie rows to the workers."""
        if isinstance(self.train_dataset, Streamed):
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_size=None, collate_fn=self.data_collator, pin_memory=self.run.task.use_gpu
            )
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=self.run.order,  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.run.task.use_gpu,
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's own optimizer, its groups as LoRA+ has them where that is asked for."""
        is_made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not is_made and self.run.config.loraplus_lr_ratio is not None:
            groups = lora.parameter_groups(self.model, optimizer.param_groups, self.run.config.loraplus_lr_ratio)
            optimizer.param_groups.clear()
            for group in groups:
                optimizer.add_param_group(group)
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Seeds dropout by the micro-batch's place in the run, so that a resumed step draws what it would have drawn."""
        inputs = dict(inputs)
        place = inputs.pop("place")
        torch.manual_seed((self.args.seed * 1_000_003 + place) % 2**63)
        self.meter.count(inputs["position_ids"])
        labels = int((inputs["labels"] != IGNORE).sum())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.micro_batches.append((place, loss.detach(), labels))
        if self.accelerator.sync_gradients:
            self.judge_step(float(num_items_in_batch))
        return loss

    def judge_step(self, num_items: float) -> None:
        """Before the optimizer moves: stop at a bad step, or leave it out; see `guard.py`. Every worker decides alike."""
        micro_batches, self.micro_batches = self.micro_batches, []
        workers, is_first = self.run.order.num_workers, self.run.order.rank == 0
        asks = is_first and not self.is_told and time.monotonic() - self.asked_s >= ASK_INTERVAL_S
        total = torch.stack([loss for _, loss, _ in micro_batches]).float().sum()
        both = torch.stack(
            [total, total.new_tensor(float(asks))]
        )  # one sum for both: that all ask together costs nothing
        if workers > 1:
            torch.distributed.all_reduce(both)
        self.asks = float(both[1]) > 0
        loss, step = float(both[0]) / workers, self.state.global_step + 1
        history = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        reason = guard.what_is_bad(step, loss, self.gradient_norm(), history, self.run.config.loss_spike)
        if reason is None:
            self.kept_losses.append(loss)
            self.skipped_in_a_row = 0
            return
        # A micro-batch's loss is its sum over the step's tokens, times the workers.
        mine = [
            guard.MicroBatch(place, float(loss) * num_items / workers / max(labels, 1))
            for place, loss, labels in micro_batches
        ]
        found: list[list[guard.MicroBatch]] = [mine] * workers
        if workers > 1:
            torch.distributed.all_gather_object(found, mine)
        bad = guard.worst(batch for batches in found for batch in batches)
        numbers = [row for batch in bad for row in self.run.order.rows_at(batch.place)]
        known: list[list[str]] = [guard.sources(self.train_dataset.rows, numbers)] * workers
        if workers > 1:  # streamed rows are known to the worker that has had them
            torch.distributed.all_gather_object(known, known[0])
        names = list(dict.fromkeys(name for each in known for name in each))
        self.skipped += 1
        self.skipped_in_a_row += 1
        is_left_out = self.run.config.on_bad_loss == "skip" and self.skipped_in_a_row <= guard.MAX_SKIPPED
        entry = {"step": step, "bad_loss": reason, "rows": numbers, "sources": names, "left_out": is_left_out}
        self.record(entry)
        if not is_left_out:
            can_skip = "" if self.is_deepspeed_enabled else ", and `--on_bad_loss skip` leaves such steps out"
            raise TrainingError(
                f"{reason}; its worst: {guard.described(numbers, names)}\n"
                f"hint: look at these rows' text, or use a lower `learning_rate`; the checkpoints before it are good{can_skip}"
            )
        self.model.zero_grad(set_to_none=True)  # an optimizer does not touch what has no gradient, nor its moments

    def is_leaving(self) -> bool:
        """Whether a machine has just been announced to go: then a checkpoint is kept at once, for the next one may be far."""
        if not self.asks or self.run.worker.is_leaving is None:
            return False
        self.asks, self.asked_s = False, time.monotonic()
        self.is_told = self.run.worker.is_leaving()
        if self.is_told:
            self.record({"leaving_at_step": self.state.global_step})
        return self.is_told

    def gradient_norm(self) -> float:
        """Of this step's gradients, the same on every worker. DeepSpeed, which has taken the step by now and freed them, keeps
        the norm."""
        if self.is_deepspeed_enabled:
            return float(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm())
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed cross-entropy over the global count of labels; DDP averages gradients, hence times the workers."""
        assert not return_outputs, "nothing asks for the outputs: evaluation is raystyle's own"
        loss = self.loss_sum(model, inputs) / num_items_in_batch
        return loss * self.accelerator.num_processes

    def loss_sum(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Sum of the cross-entropy of a flat batch, from the decoder's last hidden state: whole logits are never made.

        The hidden state is taken by a hook, for as one of the model's outputs it would come in fp32 with all the others.
        """
        inputs = dict(inputs)
        labels_T = inputs.pop("labels")[0]
        output = model(**inputs, use_cache=False, **({"logits_to_keep": 1} if self.is_head_plain else {}))
        hidden_TD, self.hidden_TD = self.hidden_TD, None
        if not self.is_head_plain:
            return summed_cross_entropy(output.logits[0], lambda logits: logits, labels_T, output.logits.shape[-1])
        with self.accelerator.autocast():
            return summed_cross_entropy(
                hidden_TD, self.head, labels_T, self.head.out_features, self.run.step.get("has_liger", False)
            )

    def _keep_hidden(self, decoder: Any, inputs: Any, output: Any) -> None:
        self.hidden_TD = output[0][0]

    @torch.no_grad()
    def check_head(self) -> bool:
        """Whether logits are the output embeddings of the last hidden state; some models scale or cap them after."""
        ids_T = torch.arange(min(16, self.head.out_features), device=self.args.device)
        was_training = self.model.training
        logits_TV = self.model.eval()(input_ids=ids_T[None], use_cache=False).logits[0]
        ours_TV = self.head(self.hidden_TD)
        self.hidden_TD = None
        self.model.train(was_training)
        return bool(torch.allclose(ours_TV.float(), logits_TV.float(), rtol=1e-2, atol=1e-3))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds speed, memory and time left, counts epochs by rows, and keeps metrics.jsonl."""
        if "train_runtime" in logs:
            return  # the Trainer's own summary counts this process's steps alone, not the run's
        now_s = time.monotonic()
        if "loss" in logs:
            order = self.run.order
            # Where workers do not divide the micro-batches, the first one has more of them than others.
            share = order.per_device_batch * order.accumulation / order.global_batch
            logs |= self.meter.read(share, self.state.global_step, self.state.max_steps)
            if self.skipped:  # the Trainer's own mean holds the steps that were left out, or is nan ever since
                logs |= {"loss": statistics.fmean(self.kept_losses)} if self.kept_losses else {}
                left_out = [] if self.kept_losses else ["loss", "grad_norm"]
                logs = {name: value for name, value in logs.items() if name not in left_out}
            self.kept_losses = []
        self.state.epoch = round(self.train_dataset.epoch(self.state.global_step), 6)
        super().log(logs, start_time)
        if now_s - self.metrics_written_s >= METRICS_INTERVAL_S or self.state.global_step >= self.state.max_steps:
            try:
                self.write_metrics()
            except StorageError as error:  # the next ones hold these, too, and a checkpoint cannot do without storage
                print(f"raystyle: {str(error).splitlines()[0]}; training goes on", file=sys.stderr, flush=True)
                self.metrics_written_s = time.monotonic() + METRICS_PAUSE_S

    def record(self, entry: dict[str, Any]) -> None:
        """One more line of metrics.jsonl, at once."""
        self.state.log_history.append({"step": self.state.global_step} | entry)
        self.write_metrics()

    def write_metrics(self) -> None:
        """metrics.jsonl from the Trainer's history, which checkpoints carry: a resumed run has each step once."""
        self.metrics_written_s = time.monotonic()
        if self.is_world_process_zero():
            metrics.write(self.run.config.output_dir, metrics.joined(self.state.log_history, self.evaluated.values()))

    def read_evaluations(self) -> None:
        """Take in what has been evaluated meanwhile, for the lines written next.

        In a thread: storage that does not answer, and is asked again for a while, keeps training waiting for nothing.
        What cannot be read now is read at the next checkpoint, or by the driver when training has ended.
        """

        def read() -> None:
            try:
                self.evaluated = metrics.records(self.run.config.output_dir, self.evaluated)
            except StorageError as error:
                print(error, file=sys.stderr)

        if not self.reading.is_alive():
            self.reading = threading.Thread(target=read, name="raystyle-evaluations", daemon=True)
            self.reading.start()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replaces the Trainer's pickles: a checkpoint of `checkpoints.py`, handed over to the run's storage."""
        step = self.state.global_step
        self.measure_heldout()
        collect = sharding.gather_optimizer if self.is_deepspeed_enabled else checkpoints.collect_optimizer
        optimizer_tensors = collect(self.model, self.optimizer)
        if self.is_world_process_zero() and not sharding.is_base_sharded(self.model):
            self.write_sample(f"step-{step:08d}")
        cursor = self.train_dataset.cursor_after(step) if isinstance(self.train_dataset, Streamed) else None
        directory = tempfile.mkdtemp(prefix="raystyle-checkpoint-") if self.is_world_process_zero() else None
        try:
            with sharding.whole_adapter(self.model):
                if directory:
                    if cursor:
                        checkpoints.write_cursor(directory, cursor)
                    checkpoints.save(directory, step, self.model, optimizer_tensors, self.state, self.about())
                    # A warm-up begins at rate 0, where nothing is learned yet.
                    adapters.verify(directory, self.run.task.layer_counts, may_be_zero=True)
        except BaseException:
            if directory:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        self.run.worker.hand_over(step, directory)
        if self.is_world_process_zero():
            self.read_evaluations()
            self.write_metrics()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Loads optimizer and schedule from a checkpoint of `checkpoints.py`, where the Trainer would read pickles.

        Then proves isolation, in the state in which training goes on.
        """
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        if self.is_world_process_zero():
            self.read_evaluations()
        if resume_from_checkpoint is not None:
            tensors = checkpoints.read_optimizer(resume_from_checkpoint)
            restore = sharding.scatter_optimizer if self.is_deepspeed_enabled else checkpoints.restore_optimizer
            restore(tensors, self.model, self.optimizer)
            checkpoints.restore_schedule(self.state.global_step, self.lr_scheduler, self.optimizer)
            self.record(
                {"continued_from_step": self.state.global_step, "num_workers": self.run.worker.num_workers}
                | self.run.step
            )
        else:
            self.record({"num_workers": self.run.worker.num_workers} | self.run.step)
        self.is_head_plain = self.check_head()
        self.prove(self.train_dataset.rows)
        if resume_from_checkpoint is None:
            self.measure_heldout()
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing to load: the adapter's weights are in place before the Trainer is made."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: dropout, the only draw in a step, is seeded by place."""

    def about(self) -> dict[str, Any]:
        manifest = self.run.task.manifest
        return {
            "base_model": self.run.config.model_name_or_path,
            "base_identity": self.base_identity,
            "data_digest": manifest["digest"],
            "tokenizer_digest": manifest["tokenizer"]["digest"],
            "step": self.state.global_step,
            **({"continues": self.run.task.start_digest} if self.run.task.start_digest else {}),
        }

    def prove(self, rows: Rows | Seen) -> None:
        """Check isolation on the first blocks of a few rows, flat as the loop will have them."""
        rows_seen = [rows[number] for number in rows.spread(PROOF_ROWS)]
        pieces = [
            piece[:PROOF_TOKENS_PER_BLOCK]
            for row in rows_seen
            if row is not None
            for piece in torch.from_numpy(row.input_ids.astype("int64")).split(
                block_lengths(row, self.run.config.isolation)
            )
        ][:PROOF_BLOCKS]
        if len(pieces) > 1:
            difference = attention.prove_isolation(
                self.model, torch.cat(pieces), list(map(len, pieces)), self.run.implementation
            )
            self.hidden_TD = None
            self.record({"isolation_logit_difference": difference, "isolation_blocks": len(pieces)})

    def measure_heldout(self) -> None:
        """Log the mean loss in nats per token over up to 64 blocks of held-out text, if there is any."""
        if not self.run.task.manifest["counts"].get("heldout"):
            return
        length = self.run.task.manifest["max_seq_length"]
        blocks = heldout.blocks(self.run.task.prepared_dir, self.run.tokenizer, length)
        total, count = heldout.summed_loss(self, blocks, self.run.order.rank, self.run.order.num_workers)
        found = {"heldout_loss": round(total / count, 6), "heldout_tokens": count}
        self.record(found)
        self.callback_handler.on_log(self.args, self.state, self.control, found)  # TensorBoard, W&B and MLflow

    def write_sample(self, name: str) -> None:
        """Continue the neutral prompt greedily into samples/."""
        config = self.run.config
        if not config.sample_prompt:
            return
        self.model.eval()
        sampling = generation.Sampling(max_new_tokens=config.sample_max_new_tokens, temperature=0)
        [completion] = generation.generate(self.model, self.run.tokenizer, [config.sample_prompt], [sampling])
        self.model.train()
        record = {"step": self.state.global_step, "prompt": config.sample_prompt, "text": completion.text}
        storage.write_json(storage.join(config.output_dir, "samples", f"{name}.json"), record)

    def explain_plateau(self) -> None:
        """Where the loss gate sees a plateau, what it stands on goes into metrics.jsonl; see `hardest.py`."""
        losses, held_out = (
            [(entry["step"], entry[name]) for entry in self.state.log_history if name in entry]
            for name in ("loss", "heldout_loss")
        )
        if gate.judge(losses, held_out, self.run.task.parameters[0]).word.startswith("plateau"):
            self.record(hardest.find(self))

    def finish(self) -> None:
        """Write the adapter, re-opened and checked, to the run's `adapter/`; its `raystyle_adapter.json` comes last."""
        if self.is_world_process_zero() and not sharding.is_base_sharded(self.model):
            self.explain_plateau()
        with tempfile.TemporaryDirectory(prefix="raystyle-adapter-") as directory, sharding.whole_adapter(self.model):
            if self.is_world_process_zero():
                lora.save(self.model, directory, self.about())
                adapters.verify(directory, self.run.task.layer_counts)
                storage.upload(directory, storage.join(self.run.config.output_dir, "adapter"))


class SaveAt(transformers.TrainerCallback):
    """Ask for a checkpoint, and a line of metrics, after the planned steps, and when a machine is about to leave."""

    def __init__(self, steps: list[int], is_leaving: Callable[[], bool]) -> None:
        self.steps, self.is_leaving = set(steps), is_leaving

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = state.global_step in self.steps or self.is_leaving()
        # A logged loss is a mean since the last log: one that began before a checkpoint could not be continued.
        control.should_log = control.should_log or control.should_save
        return control
