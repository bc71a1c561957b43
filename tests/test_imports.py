"""Who may import whom, and what must stay light: the graph that the layout promises."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raystyle"
STAGES = {"corpus", "training", "style", "serving"}
# What joins stages: it may import them. Everything else at the top is shared, and imports no stage.
JOINING = {"cli", "pipeline", "evaluation", "streaming", "demo", "__main__"}
# The one file of each stage that starts Ray, and what it joins.
RAY_FILES = {f"training/{name}.py" for name in ("fit", "loop", "sweep", "validation")} | {
    "cli.py",
    "streaming.py",
    "corpus/tasks.py",
    "doctor/cluster.py",
    "serving/app.py",
    "serving/lifetime.py",
    "style/evaluate.py",
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def raystyle_parts(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("raystyle.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_stages_never_import_each_other_nor_what_joins_them(path):
    me, theirs = part(path), raystyle_parts(path)
    if me in STAGES:
        assert not theirs & (STAGES - {me})
        assert not theirs & JOINING
    elif me not in JOINING:
        assert not theirs & (STAGES | JOINING)
    if me in ("pipeline", "evaluation", "streaming"):
        assert not theirs & {"cli", "demo"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ray_is_imported_where_jobs_are_made_and_torch_never_by_the_corpus(path):
    tops = {name.split(".")[0] for name in imports(path)}
    if str(path.relative_to(PACKAGE)) not in RAY_FILES:
        assert "ray" not in tops
    if part(path) == "corpus":
        assert not tops & {"torch", "transformers", "peft"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_happens_at_import(path):
    """No Ray, no environment, no logging set-up in a library module's body."""
    if path.name in ("__main__.py",):
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
            continue
        text = ast.unparse(node)
        for forbidden in ("ray.init", "os.environ[", "basicConfig", "cuda.is_available"):
            assert forbidden not in text


def test_only_the_command_line_starts_ray():
    def starts_ray(path: Path) -> bool:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        return any(ast.unparse(call.func) in ("ray.init", "init") for call in calls)

    assert {p.relative_to(PACKAGE).as_posix() for p in modules() if starts_ray(p)} == {"cli.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import raystyle.cli",
        "from raystyle.cli import main; main(['--help'])",
        "import raystyle.config, raystyle.flags, raystyle.storage, raystyle.tokens, raystyle.pipeline, raystyle.models",
        "import raystyle.training.plan",
        "import raystyle.serving.api, raystyle.serving.app, raystyle.serving.replica",
        "import raystyle.corpus.prepare",
    ],
)
def test_light_modules_load_no_torch(statement):
    heavy = "{'torch', 'transformers', 'peft', 'deepspeed'}"
    code = f"import sys; {statement}; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
