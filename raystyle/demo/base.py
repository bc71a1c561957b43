"""Make a small base model out of documents: a byte-level BPE tokenizer and a Llama trained from scratch.

A base model is what everything else here starts from, and the usual ones are gigabytes on a hub. This one is made on the
spot in about a minute and saved as an ordinary Hugging Face folder, so the rest of the job cannot tell the difference.
It takes any documents: the demonstration's narrator, or a shelf of real novels with larger settings.

The tokenizer is trained on the same documents as the model and on nothing else, as it is for any real base that has
never met the author. Bytes cover what it has not seen, so nothing is ever unknown.

B rows in a batch, T tokens in a row, N tokens in all.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from raystyle import storage
from raystyle.demo.bpe import EOS, train_tokenizer
from raystyle.errors import DataError, RunError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

REPORT_NAME = "raystyle_base.json"
WEIGHTS_NAME = "model.safetensors"
WARMUP_STEPS = 10
LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """What a base is made with; the defaults are the demonstration's, about a minute on two CPU cores."""

    seed: int = 42
    vocab_size: int = 3072
    hidden_size: int = 192
    layers: int = 3
    heads: int = 6
    steps: int = 450
    batch_rows: int = 8
    seq_length: int = 128
    learning_rate: float = 4e-3


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """What was made: kept beside the weights as `raystyle_base.json`, whose presence means that the folder is whole."""

    digest: str
    weights_sha256: str
    settings: BaseSettings
    num_documents: int
    num_tokens: int
    num_parameters: int
    loss_first: float
    loss_last: float
    seconds: float
    cached: bool = False


# Called after every step with the steps done, all steps, and the step's loss.
OnStep = Callable[[int, int, float], None]


def build_base(
    documents: Sequence[str], output_dir: str, *, settings: BaseSettings | None = None, on_step: OnStep | None = None
) -> BaseReport:
    """Make a base in `output_dir` (a local folder), or return at once where the same one is there already.

    Raises `DataError` where the documents are too short for one row, `RunError` where the folder holds anything else.
    """
    settings = settings or BaseSettings()
    digest = base_digest(documents, settings)
    kept = _kept(output_dir, digest)
    if kept:
        return kept
    if os.path.isdir(output_dir) and os.listdir(output_dir) and REPORT_NAME not in os.listdir(output_dir):
        raise RunError(
            f"`{output_dir}` holds something that is no base made here\nhint: choose another --output_dir, or empty it"
        )
    parent = os.path.dirname(os.path.abspath(output_dir))
    os.makedirs(parent, exist_ok=True)
    aside = tempfile.mkdtemp(dir=parent, prefix=".base-")
    try:
        report = _build(documents, aside, settings, digest, on_step)
        storage.write_json(storage.join(aside, REPORT_NAME), asdict(report))
        os.chmod(aside, 0o755)  # mkdtemp's folder is its owner's alone
        if os.path.exists(output_dir):
            shutil.rmtree(output_dir)
        os.replace(aside, output_dir)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return report


def base_digest(documents: Sequence[str], settings: BaseSettings) -> str:
    """What decides the weights: every document, every setting and the libraries' versions."""
    made_of = {"settings": asdict(settings), "libraries": {name: version(name) for name in LIBRARIES}}
    header = json.dumps(made_of, sort_keys=True).encode()
    return storage.sha256([header, *(hashlib.sha256(document.encode()).digest() for document in documents)])


def _kept(output_dir: str, digest: str) -> BaseReport | None:
    """The report of a finished base with this digest whose weights are still what was written, else None."""
    report_path, weights_path = (os.path.join(output_dir, name) for name in (REPORT_NAME, WEIGHTS_NAME))
    if not (os.path.isfile(report_path) and os.path.isfile(weights_path)):
        return None
    values: dict[str, Any] = storage.read_json(report_path)
    if values.get("digest") != digest or values.get("weights_sha256") != _file_sha256(weights_path):
        return None
    return BaseReport(**values | {"settings": BaseSettings(**values["settings"]), "cached": True})


def _build(documents: Sequence[str], folder: str, s: BaseSettings, digest: str, on_step: OnStep | None) -> BaseReport:
    import torch

    start_s = time.monotonic()
    tokenizer = train_tokenizer(documents, s.vocab_size)
    eos = tokenizer.convert_tokens_to_ids(EOS)
    assert isinstance(eos, int)
    ids_N = torch.tensor([i for ids in tokenizer(list(documents))["input_ids"] for i in (*ids, eos)])
    if len(ids_N) <= s.seq_length:
        raise DataError(
            f"the documents have {len(ids_N)} tokens, fewer than a row of {s.seq_length}\n"
            "hint: give more text, or a shorter `seq_length`"
        )
    model = _new_model(len(tokenizer), eos, s)
    losses = _train(model, ids_N, s, on_step)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseReport(
        digest=digest,
        weights_sha256=_file_sha256(os.path.join(folder, WEIGHTS_NAME)),
        settings=s,
        num_documents=len(documents),
        num_tokens=len(ids_N),
        num_parameters=model.num_parameters(),
        loss_first=losses[0],
        loss_last=sum(losses[-10:]) / len(losses[-10:]),
        seconds=round(time.monotonic() - start_s, 1),
    )


def _new_model(vocab_size: int, eos: int, s: BaseSettings) -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=s.hidden_size,
        intermediate_size=s.hidden_size * 3,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads // 2 if s.heads % 2 == 0 else s.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        # The usual 0.02 suits a width of thousands. At this width the embeddings of rare characters would stay alike, and
        # an adapter, which may not change them, could not tell the characters apart.
        initializer_range=s.hidden_size**-0.5,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return LlamaForCausalLM(config)


def _train(model: "LlamaForCausalLM", ids_N: "torch.Tensor", s: BaseSettings, on_step: OnStep | None) -> list[float]:
    """Plain AdamW with a cosine schedule on rows cut at random places; returns every step's loss."""
    import torch

    generator = torch.Generator().manual_seed(s.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    losses = []
    for step in range(s.steps):
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = s.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / s.steps))
        starts_B = torch.randint(len(ids_N) - s.seq_length, (s.batch_rows,), generator=generator)
        ids_BT = torch.stack([ids_N[i : i + s.seq_length] for i in starts_B.tolist()])
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if on_step:
            on_step(step + 1, s.steps, losses[-1])
    model.eval()
    return losses


def _file_sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
