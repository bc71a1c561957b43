"""Which modules get LoRA, and how; merged again for export."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from raystyle.config import TrainConfig
from raystyle.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel


def attach(model: Any, config: TrainConfig) -> "PeftModel":
    """The model with a fresh LoRA adapter, its weights drawn from `config.seed`; only LoRA's are trainable, in fp32."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets: Any = list(config.lora_target_modules)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=config.use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    return get_peft_model(model, lora)  # type: ignore[no-any-return]


def merge(model: "PeftModel") -> Any:
    """The base model with its adapter added into its weights; raises where a merged weight is not finite."""
    return model.merge_and_unload(safe_merge=True)


def check_layers(model: "PeftModel", layer_counts: dict[str, int]) -> None:
    """Raises `ModelError` where LoRA sits on other layers than the plan counted (`layer_counts`: by module name)."""
    from peft.tuners.lora import LoraLayer

    found = Counter(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, LoraLayer))
    if dict(found) != layer_counts:
        raise ModelError(f"LoRA was put on {dict(found)}, and the plan counted {layer_counts}\nhint: name the modules")
