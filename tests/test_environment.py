import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import medqdm

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower().replace("_", "-")


def test_environment_file_and_pyproject_agree() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(d for d in environment["dependencies"] if str(d).startswith("python"))
    assert python == f"python{PROJECT['requires-python']}"
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert "dev" in PROJECT["optional-dependencies"]


def test_constraints_pin_every_direct_dependency_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    pinned = {canonical(name): version for name, version in pinned.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"]]:
        requirement = Requirement(text)
        if requirement.name != "medqdm":
            version = pinned[canonical(requirement.name)]
            assert requirement.specifier.contains(version), (text, version)
    assert pinned["torch"] == "2.13.0"


@pytest.mark.parametrize("module", ["medqdm", "medqdm.cli"])
def test_import_loads_no_library_of_the_work(module: str) -> None:
    heavy = {"numpy", "torch", "scipy", "pydicom", "monai", "nibabel", "SimpleITK", "pydantic"}
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_every_public_name_can_be_loaded() -> None:
    assert dir(medqdm) == medqdm.__all__ == sorted(medqdm.__all__)
    assert all(getattr(medqdm, name) is not None for name in medqdm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        medqdm.nothing  # noqa: B018


def test_readme_map_names_what_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- map -->")[1]
    named = set(re.findall(r"^  ([a-z_]+(?:\.py|/))", block, flags=re.MULTILINE))
    there = {p.name for p in (ROOT / "medqdm").glob("*.py") if p.name[0] != "_"}
    there |= {f"{p.parent.name}/" for p in (ROOT / "medqdm").glob("*/__init__.py")}
    assert named == there | {"weights/"}


def test_package_uses_only_what_it_declares() -> None:
    names = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "IPython": "ipykernel"}
    extras = PROJECT["optional-dependencies"]
    declared = {
        canonical(r)
        for r in [*PROJECT["dependencies"], *extras["perceptual"], *extras["notebooks"]]
    }
    imported = set()
    for file in (ROOT / "medqdm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"medqdm"}
    assert {n for n in third_party if canonical(names.get(n, n)) not in declared} == set()
