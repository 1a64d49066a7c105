"""``fusecache check``."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from fusecache.api.backend import ImageInfo
from fusecache.cli import offline
from fusecache.cli.failure import EXIT_FAILED
from fusecache.cli.output import json_option, print_json
from fusecache.cli.plugins import LayerReport, examine_layers
from fusecache.config.load import ConfigError, load_config
from fusecache.config.schema import Config
from fusecache.images.registry import CONTROL_NAME
from fusecache.metrics.text import printable


@dataclass(frozen=True, slots=True)
class Report:
    """What a configuration would build.

    Attributes:
        images: each image's name and its layers, top first.
        problems: what would go wrong.
        notes: what may be meant otherwise.
    """

    images: Sequence[tuple[str, Sequence[LayerReport]]]
    problems: Sequence[str]
    notes: Sequence[str]


@click.command("check")
@click.argument("config", type=Path)
@json_option
@click.pass_context
def command(context: click.Context, config: Path, as_json: bool) -> None:
    """Check CONFIG: print each image's stack as it would be built, and what would go wrong.

    Exit codes: 0 all is well, 1 something would go wrong, 2 the configuration is wrong.
    """
    loaded = load_config(config)
    stacks = examine_layers(loaded)
    report = examine(loaded, stacks, offline.list_images(loaded))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
    mistakes = [mistake for layers in stacks for layer in layers for mistake in layer.mistakes]
    if mistakes:
        raise ConfigError(mistakes)
    if report.problems:
        context.exit(EXIT_FAILED)


def examine(config: Config, stacks: Sequence[Sequence[LayerReport]], infos: Sequence[ImageInfo]) -> Report:
    """Put together what is known: the layers of each stack, and the images there are. Pure."""
    images: list[tuple[str, Sequence[LayerReport]]] = []
    problems, notes = [], []
    for info in infos:
        if info.name == CONTROL_NAME:
            problems.append(f"image {info.name} is not shown: the name is the control directory's")
            continue
        number = next((n for n, stack in enumerate(config.stacks) if stack.matches(info.name)), None)
        images.append((info.name, () if number is None else stacks[number]))
    for number, stack in enumerate(stacks):
        for report in stack:
            if report.missing:
                then = (
                    "its images do not open"
                    if report.layer.required
                    else "its images open without it, but where it is dirty (ENODEV)"
                )
                problems.append(f"stack[{number}], layer {report.layer.index}: {report.missing}; {then}")
            problems += [f"stack[{number}], layer {report.layer.index}: wrong options"] if report.mistakes else []
    for number, configured in enumerate(config.stacks):
        for pattern in configured.images:
            if not any(fnmatchcase(info.name, pattern) for info in infos):
                notes.append(f'stack[{number}]: no image matches "{pattern}"')
    return Report(images, problems, notes)


def _print(report: Report) -> None:
    for name, layers in report.images:
        click.echo(f"{printable(name)}: {' > '.join([*map(_layer_text, layers), 'backend'])}")
    for problem in report.problems:
        click.echo(f"problem: {printable(problem)}")
    for note in report.notes:
        click.echo(f"note: {printable(note)}")


def _layer_text(report: LayerReport) -> str:
    what = "missing" if report.missing else "wrong options" if report.mistakes else ""
    return f"{report.layer.index} {printable(report.layer.plugin)}" + (f" ({what})" if what else "")


def _as_json(report: Report) -> Any:
    return {
        "images": [
            {"name": name, "layers": [_layer_json(layer) for layer in layers]} for name, layers in report.images
        ],
        "problems": report.problems,
        "notes": report.notes,
    }


def _layer_json(report: LayerReport) -> Any:
    return {
        "index": report.layer.index,
        "plugin": report.layer.plugin,
        "required": report.layer.required,
        "missing": report.missing or None,
        "mistakes": [str(mistake) for mistake in report.mistakes],
    }
