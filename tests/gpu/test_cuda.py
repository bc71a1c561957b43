"""What only a GPU can show: isolation and the loss in bf16 on CUDA, and a whole run on one device."""

import pytest
import torch

from raystyle.training import attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_isolation_is_proved_on_cuda(tiny_model, dtype):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    attention.register()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype, attn_implementation=attention.PACKED_SDPA)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).cuda()
    ids_T = torch.randint(0, 256, (60,))
    assert attention.prove_isolation(model, ids_T, [20, 1, 39], attention.PACKED_SDPA) < 0.05


def test_a_run_on_one_gpu(tiny_model, tiny_prepared, tmp_path):
    from raystyle.cli import main

    words = ["--model_name_or_path", tiny_model, "--dataset_path", tiny_prepared, "--output_dir", tmp_path / "run"]
    settings = ["--lora_r", 4, "--lora_alpha", 8, "--max_steps", 6, "--save_steps", 3, "--learning_rate", 3e-3]
    batch = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--use_gpu", "--bf16"]
    assert main(["train", *map(str, [*words, *settings, *batch])]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
