"""Who may import whom (docs/architecture.md): read from the sources, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from anymal.stage import stage_names

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "mlflow", "spacy", "cv2", "onnxruntime", "accelerate", "matplotlib", "scipy",
         "pandas", "av", "kubeflow", "kubernetes"}
ORCHESTRATORS = {"kfp", "dvc", "components", "pipelines"}
LIMIT = 150
"""Lines that a stage file may have."""


def sources(*folders: str) -> list[Path]:
    """Python files of the folders; failing when there is none, so that a moved folder does not pass for a clean one."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, folders
    return found


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `from a import b` gives `a` and `a.b`, for b may be a module. Not those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    if top_level_only:
        blocks += [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    skipped = {id(inner) for block in blocks for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} if node.module else set()
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def neighbours(path: Path) -> set[str]:
    """Packages and modules directly under `anymal` that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("anymal.") and name.count(".") >= 1}


def test_anymal_knows_neither_kfp_nor_dvc():
    for path in sources("anymal"):
        assert not roots(imports(path)) & ORCHESTRATORS, path


def test_components_and_pipelines_load_no_model_library():
    for path in sources("components", "pipelines"):
        names = imports(path)
        assert not roots(names) & HEAVY, path
        assert neighbours(path) <= {"__version__", "cluster", "config", "data", "errors", "overrides", "profile", "stage"}, path


def test_model_imports_none_of_its_neighbours():
    for path in sources("anymal/model"):
        assert neighbours(path) <= {"model", "errors", "progress", "data", "media"}, path


def test_evaluation_imports_none_of_its_neighbours():
    for path in sources("anymal/evaluation"):
        assert neighbours(path) <= {"evaluation", "errors", "progress", "data", "media", "model"}, path


def test_safety_imports_none_of_its_neighbours():
    """The classifiers and the guard judge texts and pictures; whose they are they do not know: neither stages nor curation, registry or server."""
    for path in sources("anymal/safety"):
        assert neighbours(path) <= {"safety", "config", "curation", "errors", "progress", "data", "media", "evaluation", "model", "training"}, path


def test_media_are_decoded_without_knowing_who_asks():
    for path in sources("anymal/media"):
        assert neighbours(path) <= {"media", "errors"}, path
        assert not roots(imports(path)) & {"torch", "transformers", "mlflow"}, path


def test_encoders_are_known_without_loading_them():
    """Configs name kinds of encoders; the registry imports none of their modules."""
    names = imports(ROOT / "anymal/model/modalities.py")
    assert not roots(names) & HEAVY
    assert {name for name in names if name.startswith("anymal.")} <= {"anymal.errors", "anymal.errors.ConfigError"}


def test_nothing_but_the_command_line_imports_stages():
    for path in sources("anymal"):
        if path.parent.name not in {"stages", "commands"} and path.name != "__main__.py":
            assert "stages" not in neighbours(path), path


def test_stages_do_not_import_each_other():
    for path in sources("anymal/stages"):
        assert "stages" not in neighbours(path), path


def test_configs_stop_at_the_stage():
    """Model classes and metric functions take plain arguments: configs and ports are known to the machinery and the stages only."""
    known = {f"anymal.stage.{name}" for name in ("Config", "In", "Ins", "Out", "Stage", "per_modality", "load_stage", "run_stage", "resumable")}
    known |= {"anymal.config.Config", "anymal.profile.read_config"}
    for path in sources("anymal"):
        if path.parent.name not in {"stages", "commands"} and path.name not in {"__main__.py", "cluster.py", "profile.py", "stage.py"}:
            assert not imports(path) & known, path


@pytest.mark.parametrize("folder", ["stages", "commands"])
def test_heavy_imports_happen_inside_functions(folder):
    for path in sources(f"anymal/{folder}"):
        assert not roots(imports(path, top_level_only=True)) & HEAVY, path


def test_only_tracking_and_registry_import_mlflow():
    for path in sources("anymal"):
        if path.name != "registry.py" and path.parent.name != "tracking":
            assert "mlflow" not in roots(imports(path)), path


def test_only_trainjob_imports_kubeflows_sdk():
    for path in sources("anymal"):
        if path != ROOT / "anymal" / "trainjob.py":
            assert "kubeflow" not in roots(imports(path)), path


def test_stage_files_are_short_and_documented():
    assert stage_names()
    for name in stage_names():
        text = (ROOT / "anymal" / "stages" / f"{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LIMIT, name
        tree = ast.parse(text)
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        assert ast.get_docstring(tree) and ast.get_docstring(function), name


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def test_no_pickle_is_written_or_run():
    for path in sources("anymal", "components", "pipelines", "scripts"):
        assert not roots(imports(path)) & {"cloudpickle", "dill", "joblib", "shelve"}, path
        for call in calls(path):
            function = ast.unparse(call.func)
            assert function != "torch.save", f"{path}:{call.lineno}"
            assert not function.startswith("pickle."), f"{path}:{call.lineno}"
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert function != "torch.load" or settings.get("weights_only") == "True", f"{path}:{call.lineno}"
            assert settings.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
