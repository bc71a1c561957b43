"""Write docs/reference.md from the code: every flag of every command, and every cleaning rule with its reason.

python docs/generate.py            write it
python docs/generate.py --check    fail where it is not what the code says
"""

import dataclasses
import sys
from pathlib import Path

from raystyle import config, flags, training_arguments
from raystyle.corpus.rules import load_rules, pack_names
from raystyle.training import plan

REFERENCE = Path(__file__).parent / "reference.md"
COMMANDS = [
    config.DemoConfig,
    config.PrepareConfig,
    config.TrainConfig,
    config.SampleConfig,
    config.ExportConfig,
]


def reference() -> str:
    parts = ["# Reference\n\nMade from the code by `python docs/generate.py`; `make check` fails where it is stale.\n"]
    for command in COMMANDS:
        parts.append(f"## raystyle {flags.verb(command)}\n\n{' '.join((command.__doc__ or '').split())}\n")
        if command is config.TrainConfig:
            parts.append("`raystyle plan` takes the same flags and trains nothing.\n")
        rows = [(f"`--{f.name}`", _default(f), f.metadata["help"]) for f in flags.fields(command).values()]
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
    more = ", ".join(f"`{n}`" for n in ("seed", *plan.SCHEDULE, *plan.LORA))
    parts.append(
        f"## What identifies a run\n\nAn `output_dir` whose run differs in one of these is refused: {names}, {more}. "
        "The number of workers, `per_device_train_batch_size` and `gradient_accumulation_steps` may change while their "
        "product, the global batch, stays.\n"
    )
    for name in pack_names():
        rules = load_rules(name)
        parts.append(f"## Rules of `{name}`\n")
        rows = [(f"`{rule.name}`", rule.action, rule.why, _code(rule.match[0])) for rule in rules.rules]
        parts.append(_table(("rule", "action", "why", "an example"), rows))
    return "\n".join(parts)


def _default(field: "dataclasses.Field") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _code(text: str) -> str:
    return f"`{text}`" if "`" not in text else text


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
