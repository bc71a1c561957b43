"""What cannot be trained is refused before any long work, with the reason and a way out."""

import json

import builders
import pytest

from raystyle import flags, models, tokens
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, ModelError
from raystyle.training import refusals


def config(model="m", **values):
    needed = {"model_name_or_path": str(model), "dataset_path": ["/d"], "output_dir": "/o"}
    return flags.from_dict(TrainConfig, needed | values)


def check_base(model, **values):
    refusals.check_base(config(model, **values), models.read_shapes(str(model)))


@pytest.mark.parametrize(
    ("values", "package"),
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"report_to": ["tensorboard", "wandb"]}, "wandb"),
        ({"report_to": ["mlflow"]}, "mlflow"),
    ],
)
def test_a_package_that_is_not_there(values, package, monkeypatch):
    monkeypatch.setattr(refusals, "_is_installed", lambda name: name != package)
    with pytest.raises(ConfigError, match=f"needs the package {package}, which is not installed\nhint: `pip install"):
        refusals.check_packages(config(**values))
    monkeypatch.setattr(refusals, "_is_installed", lambda name: True)
    refusals.check_packages(config(**values))


def test_a_reporter_that_nobody_knows_and_none():
    with pytest.raises(ConfigError, match="`report_to` names `wandbb`\nhint: it takes tensorboard, wandb"):
        refusals.check_packages(config(report_to=["wandbb"]))
    refusals.check_packages(config(report_to=["none"]))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("mamba", {"state_size": 4}, "does not support an attention implementation"),
        ("falcon", {"alibi": False}, "raystyle_packed_sdpa"),
        ("jamba", {"num_experts": 2}, "layers of the kind linear_attention"),
        ("recurrent_gemma", {}, "layers of the kind linear_attention"),
        ("minimax", {"num_local_experts": 2}, "layers of the kind linear_attention"),
    ],
)
def test_a_base_whose_documents_cannot_be_kept_apart(family, settings, reason, tmp_path):
    from transformers import AutoConfig

    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    AutoConfig.for_model(family, **sizes, **heads, **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"a `{family}` model cannot keep the documents of a row apart: .*{reason}"):
        check_base(tmp_path)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma3_text", "phi3"]
)
def test_a_base_of_attention_alone_is_taken(family, tmp_path):
    builders.write_model(tmp_path / "m", family=family)
    check_base(tmp_path / "m")


def test_a_base_without_linear_layers(tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no linear layers for LoRA\nhint"):
        models.targeted(models.read_shapes(str(tmp_path)), ("all-linear",))


def test_embeddings_that_are_one_matrix_are_not_trained_apart(tmp_path):
    path = builders.write_model(tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(ModelError, match="embed_tokens and lm_head are one matrix"):
        check_base(path, modules_to_save=["lm_head"])
    check_base(path, modules_to_save=["norm"])


def test_a_module_that_is_not_there(tiny_model):
    with pytest.raises(ModelError, match=r"`embedding`, which .*\nhint: the embeddings are embed_tokens and lm_head"):
        check_base(tiny_model, modules_to_save=["embedding"])


@pytest.fixture
def retold(tiny_model, tmp_path):
    """The tiny model's tokenizer, changed by a function of its tokenizer.json, in a folder of its own."""

    def make(change):
        folder = tmp_path / "tokenizer"
        tokens.load_tokenizer(str(tiny_model)).save_pretrained(folder)
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return folder

    return make


def check_tokenizer(model, folder, **values):
    settings = config(model, tokenizer_name_or_path=str(folder), **values)
    refusals.check_tokenizer(settings, models.read_shapes(str(model)), tokens.load_tokenizer(str(folder)))


def test_a_tokenizer_whose_ids_mean_something_else(tiny_model, retold):
    def swap(content):
        vocabulary = content["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    with pytest.raises(ConfigError, match=r"2 ids mean other tokens, such as .*\nhint: leave out"):
        check_tokenizer(tiny_model, retold(swap))


def add_token(content):
    number = max(content["model"]["vocab"].values()) + 1
    flags_ = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": number, "content": "<|chapter|>", **flags_})


def test_new_tokens_are_taken_only_where_both_embeddings_are_trained(tiny_model, retold, tmp_path):
    folder = retold(add_token)
    with pytest.raises(
        ConfigError, match=r"1 tokens that are new .*'<\|chapter\|>'.*\n.*modules_to_save embed_tokens lm_head"
    ):
        check_tokenizer(tiny_model, folder)
    with pytest.raises(ConfigError, match="new to the base"):
        check_tokenizer(tiny_model, folder, modules_to_save=["embed_tokens"])
    check_tokenizer(tiny_model, folder, modules_to_save=["embed_tokens", "lm_head"])
    tied = builders.write_model(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"hint: use the base's own tokenizer$"):
        check_tokenizer(tied, folder)


def test_the_base_s_own_tokenizer_by_another_path_is_taken(tiny_model, retold):
    check_tokenizer(tiny_model, retold(lambda content: None))
