"""Load a base model and put an adapter on it; read the shapes that the plan needs without loading weights."""

import contextlib
import dataclasses
import difflib
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from raystyle import container, tensors
from raystyle.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


SAMPLE_BYTES = 4 << 10  # of each tensor, for an identity
_DIGEST = re.compile(r" [0-9a-f]{16}$")


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear layers of one kind: their last name, weight shape, how many there are, and whether they give the logits.

    `copies` matrices are fused into each one's parameter (a mixture's experts), and a token goes through `active` of them.
    """

    name: str
    in_features: int
    out_features: int
    count: int
    is_head: bool = False
    copies: int = 1
    active: int = 1

    def lora_parameters(self, rank: int) -> int:
        """How many parameters LoRA of a rank has on all of them: two matrices for each."""
        return self.count * self.copies * rank * (self.in_features + self.out_features)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What arithmetic needs to know of a base model: read from its config alone."""

    model_type: str
    parameters: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int | None
    identity: str
    linears: tuple[Linear, ...]
    experts: tuple[Linear, ...] = ()  # fused, by `module.parameter`, in the order in which a module holds them
    modules: Mapping[str, int] = dataclasses.field(default_factory=dict)  # parameters of all modules of a last name
    embeddings: tuple[str, str] = ("embed_tokens", "lm_head")  # the last names of what reads ids and gives logits
    is_tied: bool = False  # both are one matrix


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn transformers' errors about a model that is not there or not readable into one with a way out."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"cannot load the base model `{name}`: {reason}\n"
            "hint: give a folder with config.json and *.safetensors, or a hub name that this machine can reach "
            "(gated models need `hf auth login`)"
        ) from error


def check_name(name: str) -> None:
    """Refuse a local folder that is not there before transformers goes looking for it on the hub."""
    if name.startswith(("/", ".", "~")) and not os.path.isdir(name):
        raise ModelError(f"the base model `{name}` does not exist\nhint: check the path, or give a hub name")
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise ModelError(f"`{name}` is not a model: it has no config.json\nhint: give a Hugging Face model folder")


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """The model's `PretrainedConfig`. Raises `ModelError`."""
    from transformers import AutoConfig

    check_name(name)
    with _explained(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_base(
    name: str,
    *,
    dtype: "torch.dtype | str",
    attn_implementation: str | None = "sdpa",
    trust_remote_code: bool = False,
    load_in_4bit: bool = False,
) -> "PreTrainedModel":
    """The base model on the CPU, in `dtype` (`auto`: as it is stored), from safetensors only. Without `attn_implementation` it
    is sdpa, or eager for a model that has no sdpa. Raises `ModelError`.

    `load_in_4bit` holds linear layers as Dettmers et al. 2023 (QLoRA) do: NF4, constants quantized again, computing in `dtype`.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if load_in_4bit:
        settings: Any = BitsAndBytesConfig  # its signature has no types
        quantization = settings(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    check_name(name)
    with _explained(name):
        model = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **({"quantization_config": quantization} if quantization else {}),
        )
    return model


def auto_device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def auto_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the device is a GPU that computes in it, else float32."""
    import torch

    # Older GPUs emulate it, more slowly than they compute in fp32.
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def free_memory(device: "torch.device") -> int:
    """Bytes that are free on a GPU, or for this process's machine or container."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else container.free_memory()


def laid_out(name: str, trust_remote_code: bool = False, attn_implementation: str | None = None) -> Any:
    """The network as its config has it, on torch's meta device: names and shapes, nothing allocated. Raises `ModelError`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name, trust_remote_code)
    with _explained(name), torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        return auto.from_config(config, trust_remote_code=trust_remote_code, attn_implementation=attn_implementation)


def linears(model: Any) -> dict[str, tuple[int, int]]:
    """Every linear layer of a network, by its whole name: how many features go in and out."""
    import torch

    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {name: (layer.in_features, layer.out_features) for name, layer in layers}


def read_shapes(name: str, trust_remote_code: bool = False) -> Shapes:
    """The model's shapes from its config: the network is laid out on torch's meta device, so nothing is allocated."""
    return shapes_of(laid_out(name, trust_remote_code), identity(name))


def shapes_of(model: Any, identity: str) -> Shapes:
    """The shapes of a base model without adapters, on whatever device."""
    import torch

    head = model.get_output_embeddings()
    groups: Counter[tuple[str, int, int, bool]] = Counter(
        (path.rsplit(".", 1)[-1], module.in_features, module.out_features, module is head)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return Shapes(
        model_type=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", 4 * text.hidden_size),
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=getattr(text, "max_position_embeddings", None),
        identity=identity,
        linears=tuple(Linear(*key[:3], count, key[3]) for key, count in groups.items()),
        experts=_experts(model, text),
        modules=_sizes(model),
        embeddings=(_last_name(model, model.get_input_embeddings()), _last_name(model, head)),
        is_tied=head is not None and head.weight is model.get_input_embeddings().weight,
    )


def _last_name(model: Any, wanted: Any) -> str:
    return next((path.rsplit(".", 1)[-1] for path, module in model.named_modules() if module is wanted), "")


def _sizes(model: Any) -> dict[str, int]:
    """Last name -> parameters, of every module below the model itself that has any."""
    found: Counter[str] = Counter()
    for path, module in model.named_modules():
        if path and (size := sum(parameter.numel() for parameter in module.parameters())):
            found[path.rsplit(".", 1)[-1]] += size
    return dict(found)


def num_experts(config: Any) -> int:
    """How many experts each layer of a mixture has, by transformers' config; 0 for other models."""
    counts = [getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")]
    return next((count for count in counts if count), 0)


def _experts(model: Any, config: Any) -> tuple[Linear, ...]:
    """A mixture's fused experts: parameters of three dimensions, (experts, out, in), or (experts, in, out) where the module
    says that it `is_transposed`."""
    copies = num_experts(config)
    active = getattr(config, "num_experts_per_tok", None) or copies
    groups: Counter[tuple[str, int, int]] = Counter()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and parameter.shape[0] == copies:
                out_features, in_features = parameter.shape[1:]
                if getattr(module, "is_transposed", False):
                    out_features, in_features = in_features, out_features
                groups[f"{path.rsplit('.', 1)[-1]}.{name}", in_features, out_features] += 1
    return tuple(Linear(*key, count, copies=copies, active=active) for key, count in groups.items())


def identity(name: str) -> str:
    """What a base model is, wherever it lies: a hub name, or a folder's name and a digest of its config and weights.

    Of each tensor the name, the dtype, the shape and the first 4 KiB count: to hash 16 GB at each start would cost a minute.
    All tensors count, for a base and the same base with an adapter merged into it may differ in any one of them alone.
    Raises `ModelError` for a weights file that is not safetensors.
    """
    if not os.path.isdir(name):
        return name
    folder = os.path.abspath(name)
    digest = hashlib.sha256()
    for file in sorted(os.listdir(folder)):
        path = os.path.join(folder, file)
        if file == "config.json":
            with open(path, "rb") as stream:
                digest.update(stream.read())
        elif file.endswith(".safetensors"):
            with open(path, "rb") as stream:
                _digest_weights(stream, digest)
    return f"{os.path.basename(folder)} {digest.hexdigest()[:16]}"


def _digest_weights(stream: BinaryIO, digest: "hashlib._Hash") -> None:
    try:
        stored = tensors.read_header(stream)
    except ModelError as error:
        raise ModelError(f"`{stream.name}` is not safetensors: {error}\nhint: download the base model again") from error
    for tensor in stored:
        stream.seek(tensor.start)
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(stream.read(min(SAMPLE_BYTES, tensor.end - tensor.start)))


def is_same_base(one: str, other: str) -> bool | None:
    """Whether two identities are of one base, whatever its folder is called; None for a hub name beside a folder, which
    cannot be compared."""
    digests = [_DIGEST.search(identity) for identity in (one, other)]
    if digests[0] and digests[1]:
        return digests[0][0] == digests[1][0]
    return one == other if not any(digests) else None


def targeted(
    shapes: Shapes, lora_target_modules: tuple[str, ...], lora_target_parameters: tuple[str, ...] = ()
) -> list[Linear]:
    """What gets LoRA, by the names that PEFT's layers will have. Raises `ModelError` for a target that matches nothing."""
    experts = _targeted_experts(shapes, lora_target_parameters)
    if lora_target_modules == ("all-linear",):
        linear = [layer for layer in shapes.linears if not layer.is_head]
        if not linear:
            raise ModelError(
                f"this `{shapes.model_type}` model has no linear layers for LoRA\nhint: use another base, such as Llama or Qwen"
            )
        return [*linear, *experts]
    names = {layer.name for layer in shapes.linears}
    for target in lora_target_modules:
        if target not in names:
            near = difflib.get_close_matches(target, names, n=1)
            fused = " (its experts are fused: `--lora_target_parameters experts`)" if shapes.experts else ""
            raise ModelError(
                f"`lora_target_modules` names `{target}`, which matches no linear layer of this `{shapes.model_type}` model\n"
                f"hint: {f'did you mean `{near[0]}`? ' if near else ''}it has {', '.join(sorted(names))}{fused}; "
                "`all-linear` takes all but the output layer"
            )
    return [*(layer for layer in shapes.linears if layer.name in lora_target_modules), *experts]


def _targeted_experts(shapes: Shapes, lora_target_parameters: tuple[str, ...]) -> list[Linear]:
    """PEFT wraps a module once for each of its targeted parameters: the last is `experts`, the one inside it
    `experts.base_layer`, and so on."""
    names = [layer.name for layer in shapes.experts]
    taken = expert_names(names, lora_target_parameters)
    if unknown := set(lora_target_parameters) - {"experts", *names}:
        raise ModelError(
            f"`lora_target_parameters` names `{min(unknown)}`, which this `{shapes.model_type}` model does not have\n"
            f"hint: {'it has ' + ', '.join(names) if names else 'it has no fused experts: leave it out'}"
        )
    if not taken and lora_target_parameters:
        raise ModelError(
            f"`lora_target_parameters` asks for experts, and this `{shapes.model_type}` model has no fused ones\n"
            "hint: leave it out"
        )
    found = []
    for layer in shapes.experts:
        if layer.name in taken:
            module = layer.name.split(".")[0]
            later = [name for name in taken[taken.index(layer.name) + 1 :] if name.split(".")[0] == module]
            found.append(dataclasses.replace(layer, name=module + ".base_layer" * len(later)))
    return found


def expert_names(names: Sequence[str], lora_target_parameters: tuple[str, ...]) -> list[str]:
    """Those of a model's fused experts' `names` that are asked for: by name, or all of them by the word `experts`."""
    return [name for name in names if "experts" in lora_target_parameters or name in lora_target_parameters]


def load_adapter(model: "PreTrainedModel", directory: str) -> "PeftModel":
    """The model with the adapter of a local directory on it, in eval mode.

    PEFT loads an adapter of another model's shape with a warning at most, so every tensor must find its place.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        tuned = PeftModel.from_pretrained(model, directory, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the adapter `{directory}` does not fit the base model: {reason}\nhint: give the base it was trained on"
        ) from error
    with safe_open(os.path.join(directory, "adapter_model.safetensors"), framework="pt") as stored:
        expected = set(stored.keys())
    present = set(get_peft_model_state_dict(tuned))
    if expected != present:
        raise ModelError(
            f"the adapter `{directory}` has {len(expected - present)} tensors that this base model has no place for, and "
            f"lacks {len(present - expected)}\nhint: give the base it was trained on"
        )
    tuned.eval()
    return tuned


@contextlib.contextmanager
def scaled(model: "PeftModel", scale: float) -> Iterator[None]:
    """The adapter's update times `scale` (0 is the base exactly, 1 the adapter as trained, above 1 more of it).

    This is a straight line through the weights from the base (Wortsman et al. 2022, WiSE-FT). What it was before is put
    back afterwards, whatever happens. Raises `ConfigError` for a scale that is negative or no number, `ModelError` where
    the model has no LoRA.
    """
    from peft.helpers import rescale_adapter_scale
    from peft.tuners.lora import LoraLayer

    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(
            f"an adapter's scale is 0 or more, not {scale}\nhint: 0 is the base, 1 the adapter as trained"
        )
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ModelError("the model has no LoRA to scale\nhint: put an adapter on it first")
    # At 0 the update is not added at all, rather than times zero: an infinite one would leave its mark as nan.
    with model.disable_adapter() if scale == 0 else rescale_adapter_scale(model, float(scale)):
        yield
