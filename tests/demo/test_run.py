import json
from pathlib import Path

from raystyle.demo import run


def test_the_demo_s_settings_are_those_of_the_shipped_preset():
    preset = Path(__file__).parents[2] / "jobs" / "configs" / "demo.json"
    assert json.loads(preset.read_text()) == run.SETTINGS
