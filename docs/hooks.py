"""Pages that mkdocs makes of the program itself, each where a page says ``<!-- make: NAME -->``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_MARK = re.compile(r"<!-- make: (\w+) -->")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([\w.]*\.)?(\w+)</code>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _MARK.sub(lambda match: globals()[f"make_{match[1]}"](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for each page: docstrings name things by Sphinx's roles."""
    return _ROLE.sub(r"<code>\2</code>", html)


def make_commands() -> str:
    """Every command of the command line, with its arguments and options, as ``--help`` has them."""
    import typer

    from napari_jrss.cli import app

    lines: list[str] = []
    panel = None
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            lines += [f"## {panel}", ""]
        context = typer.Context(command, info_name=f"napari-jrss {name}")
        usage = " ".join(command.collect_usage_pieces(context)).translate(
            str.maketrans("", "", "{}")
        )
        lines += [f"### {name}", "", f"    napari-jrss {name} {usage}", "", command.help, ""]
        lines += ["| Option | Meaning |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None and parameter.name != "help":
                option = record[0].replace(" range>", ">").replace("|", ", ")
                lines.append(f"| `{option}` | {_bounds(_cell(record[1]))} |")
        lines.append("")
    return "\n".join(lines)


def make_settings() -> str:
    """Every field of the settings' models, with what each preset sets it to."""
    from napari_jrss import config

    presets = {name: config.preset(name).model_dump() for name in ("paper", "fast", "smoke")}
    lines = ["## Training", "", *_intro(config.TrainingConfig), *_table(config.TrainingConfig)]
    values = [tuple(presets[name].items()) for name in presets]
    lines += [
        _row(config.TrainingConfig, key, presets)
        for key, value in values[0]
        if not isinstance(value, dict)
    ]
    for key, field in config.TrainingConfig.model_fields.items():
        model: Any = field.annotation
        if hasattr(model, "model_fields"):
            inside = {name: found[key] for name, found in presets.items()}
            lines += ["", f"### {key}", "", *_intro(model), *_table(model)]
            lines += [_row(model, name, inside) for name in model.model_fields]
    for title, model in (
        ("Preprocessing", config.PreprocessingConfig),
        ("Refinement of a pair", config.RefinementConfig),
    ):
        default = {"default": model().model_dump()}
        lines += ["", f"## {title}", "", *_intro(model), "| Setting | Meaning | Default |"]
        lines += ["|---|---|---|", *(_row(model, name, default) for name in model.model_fields)]
    return "\n".join(lines)


def make_notebook() -> str:
    """The notebook of the tutorial, with the outputs that it was saved with."""
    path = Path(__file__).parent / "tutorials" / "first_project.ipynb"
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="Output" src="data:image/png;base64,{png}">')
            else:
                text = "".join(output.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def _intro(model: Any) -> list[str]:
    return [" ".join((model.__doc__ or "").split("\n\n")[0].split()), ""]


def _table(_model: Any) -> list[str]:
    return ["| Setting | Meaning | `paper` | `fast` | `smoke` |", "|---|---|---|---|---|"]


def _row(model: Any, name: str, values: dict[str, dict[str, Any]]) -> str:
    field = model.model_fields[name]
    meaning = ". ".join(part.rstrip(".") for part in (field.title, field.description) if part)
    shown = (json.dumps(found[name], default=str) for found in values.values())
    return "| " + " | ".join((f"`{name}`", _cell(meaning) + ".", *map(_cell, shown))) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _bounds(text: str) -> str:
    """Bounds in words, where typer writes ``1<=x<=10``."""
    text = re.sub(r"([\d.]+)&lt;=x&lt;=([\d.]+)", r"from \1 to \2", text)
    return re.sub(r"x>=([\d.]+)", r"at least \1", text)
