"""The README's example runs as it stands, and its option table is the verb's."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    assert "'fusion'" in capsys.readouterr().out
    assert (tmp_path / "scores.safetensors").exists()
    mask, model = names["mask"], names["model"]
    total = sum(entry.size for entry in mask.layout.entries)
    assert sum(mask.kept.values()) == round(0.2 * total)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in mask.kept)
    assert zeros == total - sum(mask.kept.values())


def test_the_option_table_is_the_verbs():
    from typer.main import get_command

    from fastalter.score import app

    rows = "\n".join(re.findall(r"^\| `.*", README.split("## From Python")[0], re.MULTILINE))
    table = set(re.findall(r"`(--[a-z-]+)`", rows))
    options = {opt for parameter in get_command(app).params for opt in parameter.opts if opt.startswith("--")}
    assert table | {"--help"} == options | {"--help"}


def test_the_option_table_states_the_defaults():
    from fastalter.pipeline import ScoreOptions

    rows = re.findall(r"^\| (`--.*?) \|.*\| (.*?) \|$", README, re.MULTILINE)
    pairs = [(flags.split(", "), values.split(", ")) for flags, values in rows]
    stated = {flag: value for flags, values in pairs for flag, value in zip(flags, values, strict=False)}
    for name in ("batches", "batch_size", "sweeps", "lr", "alpha", "beta", "ratio", "seed"):
        assert float(stated[f"`--{name.replace('_', '-')}`"]) == getattr(ScoreOptions(), name), name
    for name in ("method", "reri_data", "bn", "device"):
        assert stated[f"`--{name.replace('_', '-')}`"] == getattr(ScoreOptions(), name), name


def test_every_path_that_the_documents_name_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)h#][^)]*)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for folder in re.findall(r"(fastalter/[a-z]+/|csrc/|bench/|triton_kernels/|tests/) ", README):
        assert (ROOT / folder).is_dir(), folder
