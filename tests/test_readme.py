import re
from hashlib import sha256
from pathlib import Path

import pytest

from medqdm import cli
from medqdm.config import load_task
from medqdm.loading import bundled_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(6, 512, 512) (0.75, 0.75) 0.2")
    assert len(list((tmp_path / "enhanced").glob("*.dcm"))) == 6


def test_every_command_is_in_the_readme() -> None:
    named = set(re.findall(r"^\| `medqdm ([a-z-]+)", README, flags=re.MULTILINE))
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    assert named == commands


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_linked_file_is_there(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", [*ROOT.glob("docs/training/*/*.yaml")], ids=lambda p: p.stem)
def test_every_task_that_trained_loads(path: Path) -> None:
    assert load_task(path).upscale == int(re.findall(r"sr(\d)", path.as_posix())[-1])


@pytest.mark.parametrize("task", ["sr4", "sr8"])
def test_the_model_card_is_of_the_bundled_weights(task: str) -> None:
    card = (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"`{sha256(bundled_weights(task).read_bytes()).hexdigest()}`" in card
