"""The rules that `bench/prepare.py` measures every tool with: as a pack they do what they do as expressions."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from raystyle.corpus.clean import clean
from raystyle.corpus.packs import load_rules
from raystyle.corpus.steps import SWITCHABLE

PEERS = Path(__file__).resolve().parents[2] / "bench" / "peers"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("number", range(2))
def test_the_pack_leaves_what_the_expressions_leave(number: int) -> None:
    text = module("novels").made_up(number).replace("\r\n", "\n")
    pack = load_rules(str(PEERS / "rules.yaml"), disable=SWITCHABLE)
    cleaned, removed = clean(text, pack)
    assert cleaned.text == module("rules").clean(text)
    hits = set(removed["rule"].to_pylist())
    assert {rule.name for rule in pack.rules} <= hits | {"named_heading", "metadata", "ruler"}
