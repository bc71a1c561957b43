"""Which parts of a model get LoRA, and of which kind; saved in PEFT's format, and merged again for export."""

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from raystyle import adapters, models
from raystyle.config import TrainConfig
from raystyle.errors import ModelError
from raystyle.training import pissa

if TYPE_CHECKING:
    from peft import PeftModel


def settings(config: TrainConfig) -> dict[str, Any]:
    """The fields of PEFT's `LoraConfig` that a run asks for, as its adapters will have them."""
    doubled = 2 if config.init_lora_weights.startswith("pissa") else 1  # see pissa.py
    return {
        "peft_type": "LORA",
        "r": config.lora_r * doubled,
        "lora_alpha": config.lora_alpha * doubled,
        "lora_dropout": config.lora_dropout,
        "target_modules": list(config.lora_target_modules),
        "target_parameters": list(config.lora_target_parameters),
        "modules_to_save": list(config.modules_to_save),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }


def attach(model: Any, config: TrainConfig) -> "PeftModel":
    """The model with a fresh LoRA adapter, its weights drawn from `config.seed`; only what is trained is in fp32.

    Names of modules are given to PEFT one by one: its own `all-linear` also takes a mixture's router and experts, and gives
    those another rank.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    linear = {
        path.rsplit(".", 1)[-1]
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    experts = [
        f"{path.rsplit('.', 1)[-1]}.{name}"
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
    every = config.lora_target_modules == ("all-linear",)
    start: Any = True if config.init_lora_weights == "default" else config.init_lora_weights
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(linear) if every else list(config.lora_target_modules),
        target_parameters=models.expert_names(list(dict.fromkeys(experts)), config.lora_target_parameters) or None,
        modules_to_save=list(config.modules_to_save) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=start,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    tuned: Any = get_peft_model(model, lora)
    if config.init_lora_weights.startswith("pissa"):
        pissa.remember(tuned)
    _keep_in_fp32(tuned)
    return cast("PeftModel", tuned)


def _keep_in_fp32(model: "PeftModel") -> None:
    """Modules that are trained whole, which PEFT leaves in the base's dtype: in bfloat16 small updates would be lost.

    What goes in is cast to fp32 and what comes out back again, so that the layers around them need not know.
    """
    import torch
    from peft.utils import ModulesToSaveWrapper

    def cast_in(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if torch.is_floating_point(x) else x for x in inputs)

    def cast_out(dtype: Any) -> Any:
        return lambda module, inputs, output: output.to(dtype)

    for wrapper in [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]:
        dtype = next(wrapper.original_module.parameters()).dtype
        if dtype != torch.float32:
            for module in wrapper.modules_to_save.values():
                module.float()
                module.register_forward_pre_hook(cast_in)
                module.register_forward_hook(cast_out(dtype))


def parameter_groups(model: Any, groups: list[dict[str, Any]], ratio: float | None) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al. 2024): of each of an optimizer's groups the B matrices apart, at `ratio` times its rate."""
    if ratio is None:
        return groups
    of_b = {id(parameter) for name, parameter in model.named_parameters() if ".lora_B." in name}
    split = []
    for group in groups:
        slow = [parameter for parameter in group["params"] if id(parameter) not in of_b]
        fast = [parameter for parameter in group["params"] if id(parameter) in of_b]
        split += [group | {"params": slow}, group | {"params": fast, "lr": ratio * group["lr"]}]
    return [group for group in split if group["params"]]


def save(model: "PeftModel", directory: str, about: dict[str, Any]) -> None:
    """Write a model's adapter in a form that needs nothing but the base it was put on; see `adapters.save`."""
    adapters.save(model, directory, about, pissa.as_plain(model))


def load(directory: str, model: Any) -> None:
    """Put the weights that `save` wrote, or an adapter's, into a model that already has the adapter's modules.

    Raises `ModelError` where one of either has no counterpart in the other.
    """
    import os

    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(os.path.join(directory, adapters.WEIGHTS))
    state = pissa.restore(model, state)
    places = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if places != set(state):
        raise ModelError(
            f"the adapter `{directory}` has {len(set(state) - places)} tensors without a place in the model, and lacks "
            f"{len(places - set(state))}\nhint: give the settings that it was trained with"
        )
    set_peft_model_state_dict(model, state)


def merge(model: "PeftModel") -> Any:
    """The base model with its adapter added into its weights; raises where a merged weight is not finite."""
    return model.merge_and_unload(safe_merge=True)


def check_layers(model: "PeftModel", layer_counts: dict[str, int]) -> None:
    """Raises `ModelError` where LoRA sits on other layers than the plan counted (`layer_counts`: by module name)."""
    from peft.tuners.lora import LoraLayer

    found = Counter(_name(path) for path, module in model.named_modules() if isinstance(module, LoraLayer))
    if dict(found) != layer_counts:
        raise ModelError(f"LoRA was put on {dict(found)}, and the plan counted {layer_counts}\nhint: name the modules")


def _name(path: str) -> str:
    """A LoRA layer's last name; where one wraps another, as on fused experts, the outer one's in front."""
    *_, name = path.replace(".base_layer", "/base_layer").rsplit(".", 1)
    return name.replace("/", ".")
