"""What only a GPU can show: attention, loss and LoRA layers in bf16 on CUDA, and a whole run on one device."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from raystyle.training import attention, dropout, lora_linear, loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LENGTHS = [20, 1, 39, 200]


def with_lora(base, **settings):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **settings)).cuda()


def mistral(implementation, window=None, dtype=torch.bfloat16):
    """Four query heads that share two heads of keys, and a sliding window if one is named."""
    attention.register()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, attn_implementation=implementation,
    )  # fmt: skip
    return with_lora(MistralForCausalLM(config).to(dtype))


def ids():
    return torch.randint(0, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sdpa_isolates_on_cuda(dtype):
    assert (
        attention.prove_isolation(mistral(attention.PACKED_SDPA, dtype=dtype), ids(), LENGTHS, attention.PACKED_SDPA)
        < 0.05
    )


@pytest.mark.parametrize("window", [None, 16, 64])
def test_torchs_own_flash_kernel_isolates_and_keeps_windows(window):
    assert attention.has_varlen()
    assert attention.prove_isolation(mistral(attention.VARLEN, window), ids(), LENGTHS, attention.VARLEN) < 0.05


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("recomputes", [False, True])
def test_its_gradients_are_those_of_sdpa_block_by_block(window, recomputes):
    found = {}
    for implementation in (attention.VARLEN, attention.PACKED_SDPA):
        model = mistral(implementation, window).train()
        if recomputes:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        output = model(
            input_ids=ids()[None].cuda(),
            position_ids=attention.flat_positions(LENGTHS).cuda(),
            use_cache=False,
            **attention.boundaries(LENGTHS, implementation, torch.device("cuda")),
        )
        output.logits.float().logsumexp(-1).sum().backward()
        found[implementation] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours, theirs = found.values()
    assert ours.keys() == theirs.keys() and len(ours) == 8
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() < 0.03 * theirs[name].norm(), name


def test_auto_is_a_flash_kernel_whether_or_not_flash_attn_is_installed():
    assert attention.choose("auto", use_gpu=True, bf16=True) in (attention.VARLEN, *attention.FLASH)
    assert attention.choose("auto", use_gpu=True, bf16=False) == attention.PACKED_SDPA


def test_the_loss_and_its_gradient_are_those_of_whole_logits(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 1000 * 7)
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 1000, bias=False).cuda().bfloat16().requires_grad_(False)
    hidden_TD = torch.randn(50, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels_T = torch.randint(0, 1000, (50,), device="cuda")
    whole = torch.nn.functional.cross_entropy(head(hidden_TD)[:-1].float(), labels_T[1:], reduction="sum")
    [expected] = torch.autograd.grad(whole, hidden_TD)
    ours = loss.summed_cross_entropy(hidden_TD, head, labels_T, 1000)
    [gradient] = torch.autograd.grad(ours, hidden_TD)
    torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-3)
    assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_fused_lora_layers_are_pefts_and_recompute_their_masks():
    def gradients(fused, dropout=0.0, recomputes=False):
        torch.manual_seed(0)
        base = MistralForCausalLM(
            MistralConfig(
                vocab_size=300,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
        model = with_lora(base.bfloat16(), lora_dropout=dropout).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if fused:
            assert lora_linear.fuse(model) == 4
        if recomputes:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        with torch.autocast("cuda", torch.bfloat16):
            model(input_ids=ids()[None].cuda(), labels=ids()[None].cuda(), use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    pefts, ours = gradients(False), gradients(True)
    assert pefts.keys() == ours.keys()
    for name, gradient in ours.items():
        assert (gradient - pefts[name]).norm() < 0.03 * pefts[name].norm(), name
    once, again = gradients(True, 0.3), gradients(True, 0.3, recomputes=True)
    for name, gradient in once.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("count", [1, 2047, 100_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_from_a_seed_is_the_same_on_the_way_there_and_back(count, dtype):
    x = torch.randn(count, device="cuda").to(dtype) + 5
    dropped = dropout.masked(x, 0.3, seed=2**61 + 7)
    is_kept = dropped != 0
    assert torch.equal(dropped[is_kept], x[is_kept])
    total = torch.ones_like(x)
    dropout.add_masked_(total, x, 0.3, seed=2**61 + 7)
    torch.testing.assert_close(total, torch.where(is_kept, x.float() + 1, 1).to(dtype))
    if count > 2**16:
        assert abs(is_kept.float().mean().item() - 0.7) < 0.01
        other = dropout.masked(x, 0.3, seed=8) != 0
        assert abs((is_kept == other).float().mean().item() - (0.7**2 + 0.3**2)) < 0.01


def test_greedy_text_on_cuda_is_that_of_the_cpu(tiny_model):
    from transformers import AutoModelForCausalLM

    from raystyle import generation, tokens

    tokenizer = tokens.load_tokenizer(str(tiny_model))
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    sampling = generation.Sampling(max_new_tokens=24, temperature=0)
    prompts, texts = ["今日天气阴沉，", "街上"], []
    for device in ("cpu", "cuda"):
        found = generation.generate(base.to(device), tokenizer, prompts, [sampling] * 2)
        texts.append([completion.text for completion in found])
    assert texts[0] == texts[1]


def test_a_run_on_one_gpu(tiny_model, tiny_prepared, tmp_path):
    pytest.importorskip("ray")
    from raystyle.cli import main

    words = ["--model_name_or_path", tiny_model, "--dataset_path", tiny_prepared, "--output_dir", tmp_path / "run"]
    settings = ["--lora_r", 4, "--lora_alpha", 8, "--max_steps", 6, "--save_steps", 3, "--learning_rate", 3e-3]
    batch = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--use_gpu", "--bf16"]
    assert main(["train", *map(str, [*words, *settings, *batch])]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
