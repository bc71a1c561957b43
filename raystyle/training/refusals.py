"""What cannot be trained, said before any long work: packages that are not there, bases whose documents cannot be kept
apart, tokenizers that are not the base's.

Each of these has cost somebody a night: a run that ends at its first step, or worse, one that trains something else.
"""

import importlib.util
from typing import Any

from raystyle import models, tokens
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, ModelError

# transformers' names of where metrics go, and the packages that they need.
REPORTERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "clearml": "clearml",
    "dvclive": "dvclive",
}
# Kinds of layers in which a token sees other tokens through attention alone, and so only those that it may see.
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def check_packages(config: TrainConfig) -> None:
    """Raises `ConfigError` for settings that need a package which is not installed here."""
    if config.load_in_4bit and not _is_installed("bitsandbytes"):
        raise ConfigError(
            "`--load_in_4bit` needs the package bitsandbytes, which is not installed\n"
            "hint: `pip install bitsandbytes` here and on the workers, or train without it"
        )
    for name in config.report_to:
        if name != "none" and name not in REPORTERS:
            raise ConfigError(f"`report_to` names `{name}`\nhint: it takes {', '.join(REPORTERS)}, or none")
        if name != "none" and not _is_installed(REPORTERS[name]):
            raise ConfigError(
                f"`--report_to {name}` needs the package {REPORTERS[name]}, which is not installed\n"
                f"hint: `pip install {REPORTERS[name]}` here and on the workers, or `--report_to tensorboard`; "
                "metrics.jsonl is always written"
            )


def check_base(config: TrainConfig, shapes: models.Shapes) -> None:
    """Raises `ModelError` for a base that cannot be trained as asked, by its config alone."""
    _check_isolatable(config, shapes.model_type)
    for name in config.modules_to_save:
        if name not in shapes.modules:
            raise ModelError(
                f"`modules_to_save` names `{name}`, which this `{shapes.model_type}` model does not have\n"
                f"hint: the embeddings are {' and '.join(shapes.embeddings)}"
            )
    if shapes.is_tied and (tied := set(shapes.embeddings) & set(config.modules_to_save)):
        raise ModelError(
            f"`modules_to_save` names `{min(tied)}`, but in this model {' and '.join(shapes.embeddings)} are one matrix, and "
            "trained whole they would become two\nhint: leave them out; LoRA trains the layers between them"
        )


def _check_isolatable(config: TrainConfig, model_type: str) -> None:
    """State space models and other recurrences carry one document's state into the next, and some models compute their
    attention themselves, where nobody can tell them which tokens belong together."""
    from raystyle.training import attention

    attention.register()
    reason = ""
    try:
        model = models.laid_out(config.model_name_or_path, config.trust_remote_code, attention.PACKED_SDPA)
    except ModelError as error:
        reason = f"its attention does not go through transformers' interface ({str(error).splitlines()[0]:.300})"
    else:
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - ATTENTION_LAYERS
        if kinds or getattr(type(model), "_is_stateful", False):
            what = f"layers of the kind {', '.join(sorted(kinds))}" if kinds else "a recurrent state"
            reason = f"it has {what}, which a document would leave to the next one in its row"
    if reason:
        raise ModelError(
            f"a `{model_type}` model cannot keep the documents of a row apart: {reason}\n"
            "hint: use a base with attention alone, such as Llama, Qwen, Mistral or Mixtral"
        )


def check_tokenizer(config: TrainConfig, shapes: models.Shapes, tokenizer: Any) -> None:
    """Raises `ConfigError` where another tokenizer than the base's own gives ids that mean something else to the base.

    Tokens that the base has never seen are taken where the embeddings are trained too. A base without a tokenizer of its
    own cannot be compared.
    """
    named = config.tokenizer_name_or_path
    if named is None or named == config.model_name_or_path:
        return
    try:
        own = tokens.load_tokenizer(config.model_name_or_path, config.trust_remote_code)
    except ModelError:
        return
    known = {number: token for token, number in own.get_vocab().items()}
    given = {number: token for token, number in tokenizer.get_vocab().items()}
    if other := [number for number in sorted(given) if number in known and given[number] != known[number]]:
        raise ConfigError(
            f"the tokenizer `{named}` is not the base model's: {len(other):,} ids mean other tokens, such as {other[0]}, "
            f"{given[other[0]]!r:.40} for the base's {known[other[0]]!r:.40}\nhint: leave out `--tokenizer_name_or_path`"
        )
    new = sorted(set(given) - set(known))
    if new and not set(shapes.embeddings) <= set(config.modules_to_save):
        way_out = "use the base's own tokenizer"
        if not shapes.is_tied:
            way_out += f", or train the embeddings too: `--modules_to_save {' '.join(shapes.embeddings)}`"
        raise ConfigError(
            f"the tokenizer `{named}` has {len(new):,} tokens that are new to the base, such as {given[new[0]]!r:.40}: LoRA "
            f"leaves their embeddings untrained\nhint: {way_out}"
        )
