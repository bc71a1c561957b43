"""Write docs/reference.md from the code: every flag, every reason for a rejection, every cleaning step and rule.

python docs/generate.py            write it
python docs/generate.py --check    fail where it is not what the code says
"""

import dataclasses
import sys
from pathlib import Path

from raystyle import config, flags, training_arguments
from raystyle.corpus.packs import load_rules, pack_names, switched_off
from raystyle.corpus.report import REASONS
from raystyle.corpus.rules import Rule
from raystyle.corpus.steps import BUILT_IN
from raystyle.training import plan

REFERENCE = Path(__file__).parent / "reference.md"
COMMANDS = [
    config.DemoConfig,
    config.PrepareConfig,
    config.RulesConfig,
    config.TrainConfig,
    config.SweepConfig,
    config.SampleConfig,
    config.EvaluateConfig,
    config.AttributeConfig,
    config.ExportConfig,
    config.ServeConfig,
    config.DoctorConfig,
]


def reference() -> str:
    parts = ["# Reference\n\nMade from the code by `python docs/generate.py`; `make check` fails where it is stale.\n"]
    for command in COMMANDS:
        parts.append(f"## raystyle {flags.verb(command)}\n\n{' '.join((command.__doc__ or '').split())}\n")
        if command is config.TrainConfig:
            parts.append("`raystyle plan` takes the same flags and trains nothing.\n")
        own = flags.fields(command).values()
        if command is config.SweepConfig:
            parts.append("And every flag of `raystyle train`.\n")
            own = [f for f in own if f.name not in flags.fields(config.TrainConfig)]
        rows = [(f"`--{f.name}`", _default(f), f.metadata["help"]) for f in own]
        parts.append(_table(("flag", "default", "meaning"), rows))
    owned = [(f"`{name}`", reason) for name, reason in sorted(training_arguments.OWNED.items())]
    parts.append(
        "## TrainingArguments\n\nAny other field of transformers' `TrainingArguments` is taken by its own name, on the "
        "command line or in a `--config` file, but for these:\n"
    )
    parts.append(_table(("field", "why it is refused"), owned))
    names = ", ".join(
        f"`{n}`" for n in ("model", "data digest", "max_seq_length", "isolation", "global batch", "steps")
    )
    more = ", ".join(f"`{n}`" for n in ("seed", "row_order", *plan.SCHEDULE, *plan.LORA))
    parts.append(
        f"## What identifies a run\n\nAn `output_dir` whose run differs in one of these is refused: {names}, {more}. "
        "The number of workers, `per_device_train_batch_size` and `gradient_accumulation_steps` may change while their "
        "product, the global batch, stays.\n"
    )
    parts.append("## Reasons in `rejected/`\n")
    reasons = [(f"`{reason}`", meaning, way_out) for reason, (meaning, way_out) in REASONS.items()]
    parts.append(_table(("reason", "what it means", "the way out"), reasons))
    parts.append(
        "## Built-in steps\n\nWhat `removed/` names beside rules: what happens to every line, and what only its neighbours or "
        "the whole corpus can tell.\n"
    )
    steps = [(f"`{name}`", action, why) for name, (action, why) in BUILT_IN.items()]
    parts.append(_table(("step", "action", "what it is about"), steps))
    return "\n".join([*parts, *_packs()])


def _packs() -> list[str]:
    """A section for each pack, the smallest first: the rules that no earlier one has."""
    parts: list[str] = []
    shown: dict[str, list[Rule]] = {}
    every = {name: _rules(name) for name in pack_names()}
    for name, rules in sorted(every.items(), key=lambda entry: len(entry[1])):
        inside = [pack for pack, others in shown.items() if {r.name for r in others} <= {r.name for r in rules}]
        earlier = [rule for pack in inside for rule in shown[pack]]
        rows = [(f"`{r.name}`", _kind(r), r.why, _example(r)) for r in rules if r not in earlier]
        beside = f"Beside those of {' and '.join(f'`{pack}`' for pack in inside)}:\n" if inside else ""
        parts += [f"## Rules of `{name}`\n", *([beside] if beside else [])]
        parts.append(_table(("rule", "action", "why", "an example"), rows))
        shown[name] = rules
    return parts


def _rules(name: str) -> list[Rule]:
    """All rules of a pack with all that it extends, those that are off at the end."""
    chosen = load_rules(name)
    return [*chosen.rules, *switched_off([name], chosen)]


def _kind(rule: Rule) -> str:
    heading = {"strong": ", a heading", "weak": ", a heading if its number fits"}.get(rule.heading or "", "")
    return rule.action + heading + (", above the text" if rule.at_start else "") + ("" if rule.enabled else "; off")


def _example(rule: Rule) -> str:
    """The first example, and what becomes of it if that is not nothing."""
    line = rule.match[0]
    after = line
    for start, end, replacement in reversed(rule.spans(line)):
        after = after[:start] + replacement + after[end:]
    return _code(line) + (f" → {_code(after)}" if after else "")


def _default(field: "dataclasses.Field") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return "" if value in (None, "") else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _code(text: str) -> str:
    """Text as it stands in a table; characters that nobody can see by their number."""
    shown = "".join(char if char.isprintable() or char == "\u3000" else f"\\u{ord(char):04x}" for char in text)
    return f"`{shown}`" if "`" not in shown else f"`` {shown} ``"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)]) + "\n"


def main() -> int:
    text = reference()
    if "--check" in sys.argv:
        if not REFERENCE.exists() or REFERENCE.read_text(encoding="utf-8") != text:
            print("docs/reference.md is not what the code says\nhint: python docs/generate.py", file=sys.stderr)
            return 1
        return 0
    REFERENCE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
