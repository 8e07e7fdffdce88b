"""What importing brings along, and which way imports run."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ivon_jax

PACKAGE = Path(ivon_jax.__file__).parent
ROOT = PACKAGE.parent
CORE = (
    "_ivon",
    "_state",
    "_tree",
    "_posterior_file",
    "_pruning",
    "checks",
    "diagnostics",
    "errors",
    "kinds",
    "kronecker",
    "low_rank",
    "iterates",
    "particles",
    "points",
    "mixture",
    "prior",
    "noise",
    "token_draws",
    "metrics",
    "metrics.regression",
    "metrics.calibration",
    "metrics.classification",
    "metrics.resampling",
    "metrics.ood",
    "conformal",
    "selective",
    "sampling",
    "posterior",
    "ensemble",
    "files",
)


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files():
    """Every module, found through the links that place models/ and train/."""
    places = [PACKAGE / name for name in ("", "models", "train")]
    return sorted({path for place in places for path in place.rglob("*.py")})


SOURCES = {module_name(path): path for path in source_files()}


def imports(name, module_level=False):
    """The absolute names that a module imports."""
    tree = ast.parse(SOURCES[name].read_text())
    nodes = tree.body if module_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    """Where a module stands: imports may only point to the same or a lower layer."""
    part = name.split(".")[1] if "." in name else ""
    return {"lora": 1, "models": 2, "train": 3, "testing": 4}.get(part, 0)


# The packages of train/ and its single files, from the lowest. Those of one line know
# nothing of each other.
PACKAGES = (
    {"pod", "keys", "options"},
    {"data"},
    {"tasks", "methods", "objectives", "predictors", "trainable", "trackers"},
    {"config"},
    {"config_json", "splits"},
    {"runs", "step"},
    {"problem"},
    {"config_file", "predict", "plan", "preview", "generate"},
    {"sources", "speed"},
    {"fits", "ood", "voting"},
    {"command_line", "evaluate", "fit", "inference", "loop"},
    {"queue"},
    {"report"},
    {"compare", "export", "harness", "reproduce", "tune"},
    {"cli"},
    {"entry"},
)
RANK = {package: rank for rank, packages in enumerate(PACKAGES) for package in packages}


def package(name):
    """The package of a module of train/; None for others."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["ivon_jax", "train"] and parts[2:] else None


def run(code):
    """Runs code in a fresh interpreter and returns the JSON that it prints."""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_all_layers_are_seen():
    assert {f"ivon_jax.{name}" for name in CORE} < SOURCES.keys()
    assert {layer(name) for name in SOURCES} == {0, 1, 2, 3, 4}


def test_import_of_the_method_brings_jax_and_optax_only():
    code = """if True:
        import json, sys
        import jax, jaxtyping, numpy, optax
        import wadler_lindig  # which jaxtyping loads when first used
        before = {name.partition(".")[0] for name in sys.modules}
        import ivon_jax
        for name in ("ivon", "sample", "Posterior", "load_posterior", "ensemble"):
            getattr(ivon_jax, name)
        after = {name.partition(".")[0] for name in sys.modules}
        print(json.dumps(sorted(after - before - set(sys.stdlib_module_names))))
    """
    assert run(code) == ["ivon_jax"]


def test_the_list_of_commands_needs_no_jax():
    code = """if True:
        import json, sys
        from ivon_jax.train import entry
        sys.argv = ["ivon-jax", "--help"]
        entry.overview()
        print(json.dumps(sorted({"jax", "flax", "tyro", "numpy"} & set(sys.modules))))
    """
    assert run(code) == []


def test_garbage_is_sought_outside_of_what_is_imported_only():
    code = """if True:
        import gc, json
        from ivon_jax.train import entry
        from ivon_jax.train import cli
        found, entry.sys.argv = [], ["ivon-jax", "models"]
        cli.main = lambda: found.append((gc.isenabled(), gc.get_freeze_count() > 1e5))
        entry.main()
        print(json.dumps(found))
    """
    assert run(code) == [[True, True]]


def test_every_name_of_the_package_is_imported_when_it_is_used():
    code = """if True:
        import ast, json
        import ivon_jax
        tree = ast.parse(open(ivon_jax.__file__).read())
        typed = next(node for node in tree.body if isinstance(node, ast.If))
        names = {alias.name: node.module for node in typed.body for alias in node.names}
        wrong = [name for name, module in names.items()
                 if getattr(ivon_jax, name).__name__ != name
                 and getattr(ivon_jax, name).__name__ != f"{module}.{name}"]
        listed = set(names) | {"lora", "load"} <= set(dir(ivon_jax))
        print(json.dumps([wrong, len(names) > 20, listed, hasattr(ivon_jax, "no")]))
    """
    assert run(code) == [[], True, True, False]


def test_lora_and_load_are_imported_when_they_are_first_used():
    code = """if True:
        import json, sys, types
        import ivon_jax
        before = "flax" in sys.modules
        name = ivon_jax.lora.Lora.__name__
        functions = (ivon_jax.ivon, ivon_jax.load)
        function = all(isinstance(f, types.FunctionType) for f in functions)
        print(json.dumps([before, "flax" in sys.modules, name, function]))
    """
    assert run(code) == [False, True, "Lora", True]


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    for imported in imports(name):
        top = imported.partition(".")[0]
        assert top not in ("models", "train"), f"{name} imports a bare {imported}"
        # The package itself serves names of all layers, when they are first used.
        if top == "ivon_jax" != name:
            assert layer(imported) <= layer(name), f"{name} imports {imported}"


def test_every_package_has_a_place():
    found = {package(name) for name in SOURCES} - {None}
    assert found == RANK.keys(), "add the package to PACKAGES, below what may import it"


@pytest.mark.parametrize("name", [name for name in SOURCES if package(name)])
def test_packages_import_lower_packages_only(name):
    mine = package(name)
    for imported in imports(name):
        other = package(imported)
        if other is None or other == mine or other not in RANK:
            continue
        assert RANK[other] < RANK[mine], (
            f"{name} imports {imported}, but {mine} may import only packages below it:"
            f" {', '.join(sorted(set().union(*PACKAGES[: RANK[mine]])))}"
        )


@pytest.mark.parametrize("name", CORE)
def test_core_needs_jax_optax_and_numpy_at_most(name):
    legal = {"jax", "jaxtyping", "numpy", "optax", "ivon_jax", *sys.stdlib_module_names}
    tops = {i.partition(".")[0] for i in imports(f"ivon_jax.{name}", True)}
    assert tops <= legal
    everywhere = {i.partition(".")[0] for i in imports(f"ivon_jax.{name}")}
    assert everywhere <= legal | {"safetensors"}


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_unpickles(name):
    tops = {imported.partition(".")[0] for imported in imports(name)}
    assert not tops & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "torch"}
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else ""
        for node in ast.walk(ast.parse(SOURCES[name].read_text()))
        if isinstance(node, ast.Call)
    }
    assert "read_pickle" not in calls


def test_importing_everything_starts_no_backend():
    """So that a program can still call jax.distributed.initialize afterwards."""
    names = [name for name in SOURCES if not name.endswith("__main__")]
    code = f"""if True:
        import importlib, json, socket
        def refuse(*args, **kwargs):
            raise AssertionError("network at import")
        socket.socket.connect = socket.getaddrinfo = refuse
        for name in {names!r}:
            importlib.import_module(name)
        from jax._src import xla_bridge
        print(json.dumps(xla_bridge.backends_are_initialized()))
    """
    assert run(code) is False
