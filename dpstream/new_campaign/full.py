"""The spec with every key, its default and a comment.

The first part is written out here; all other keys, defaults, comments and bounds come from the
fields of `dpstream.shared.spec`, so that the template always matches the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dpstream.shared.spec import (
    AutoTrust,
    Dimers,
    Init,
    Initial,
    Material,
    Perturb,
    ReferenceMd,
    Repulsion,
    Spec,
    TrustLevels,
)

COLUMN = 44
"""Column in which comments start."""

HEAD = """\
# {name}: a concurrent-learning campaign. Units: eV, Å, ps, K, bar.
# Put your structures into structures/, edit the first part, then run:
#   dpstream validate campaign.yaml     checks everything and prints the plan
#   dpstream run campaign.yaml
# All keys after the first part show their defaults and may be deleted.

name: {name}
type_map: [C, H]                            # chemical symbols, in model order

systems:                                    # starting structures for exploration, by name
  start:
    structures: ["structures/*.xyz"]        # files that ASE reads: POSCAR, extxyz, xyz, cif…
    # periodic: false                       # default: as the file says; false drops the cell

initial:                                    # labels for the first training: at least one of these
{perturb}
  # data: ["old/*.extxyz"]                  # labelled sets: DeePMD folders and HDF5, extxyz,
  #                                         # outputs of VASP, QE, CP2K…; see docs/data.md
  # pick: 20                                # unperturbed structures, drawn at random
{dimers}

stages:                                     # explored in order, each until it converges
  - name: warm
    systems: [start]                        # names from systems
    temperatures: [300]                     # K
    # pressures: [1]                        # bar; requires an npt ensemble
    # md: {{steps: 2000}}                     # overrides keys of md below, in this stage
    # trust: {{low: 0.05, high: 0.2}}         # overrides trust below, in this stage
    # engine: md                            # for other engines see docs/exploration.md
  - name: hot
    systems: [start]
    temperatures: [450, 600]

# material:                                 # instead of stages: derived from the melting point
{material}
"""

OWN = ("name", "type_map", "systems", "initial", "stages", "material")
"""Keys that HEAD writes."""
OPTIONAL: dict[str, type[BaseModel]] = {
    "dimers": Dimers,
    "repulsion": Repulsion,
    "init": Init,
    "reference_md": ReferenceMd,
}
"""Optional sections; the template has them commented out."""


def template(name: str) -> str:
    """The commented spec: first the keys to edit, then all other keys with their defaults."""
    head = HEAD.format(
        name=name,
        perturb="\n".join(_section("perturb", _field(Perturb), Perturb, "  ")),
        dimers="\n".join(_optional("dimers", Initial.model_fields["dimers"], "  ")),
        material="\n".join(f"# {line}" for line in _keys(Material, "  ")),
    )
    lines = [line for key, field in Spec.model_fields.items() for line in _top(key, field)]
    return "\n".join([head, *lines, ""])


def _top(key: str, field: FieldInfo) -> Iterator[str]:
    if key in OWN:
        return
    model = _model(field)
    if model is not None:
        yield ""
        yield from _section(key, field, model, "")
    elif key == "trust":
        yield ""
        yield from _trust(field)
    else:
        yield _line(key, field, "")


def _field(model: type[BaseModel]) -> FieldInfo:
    return FieldInfo(default=model(), description=(model.__doc__ or "").split("\n")[0].rstrip("."))


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it always holds one."""
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _trust(field: FieldInfo) -> Iterator[str]:
    yield from _section("trust", field, TrustLevels, "", field.default)
    yield _comment("# trust:", "or levels calibrated from the labels")
    yield from (f"# {line}" for line in _keys(AutoTrust, "  "))


def _section(
    key: str, field: FieldInfo, model: type[BaseModel], indent: str, values: Any = None
) -> Iterator[str]:
    yield _comment(f"{indent}{key}:", field.description or "")
    yield from _keys(model, indent + "  ", values)


def _keys(model: type[BaseModel], indent: str, values: Any = None) -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = _model(field)
        if inner is not None:
            yield from _section(key, field, inner, indent)
        elif key in OPTIONAL:
            yield from _optional(key, field, indent)
        else:
            yield _line(key, field, indent, values)


def _optional(key: str, field: FieldInfo, indent: str) -> Iterator[str]:
    """An optional section, commented out."""
    yield _comment(f"{indent}# {key}:", field.description or "")
    yield from (f"{indent}# {line}" for line in _keys(OPTIONAL[key], "  "))


def _line(key: str, field: FieldInfo, indent: str, values: Any = None) -> str:
    """`key: default` and a comment; commented out if there is no default."""
    if field.is_required() and values is None:
        text = f"{indent}{key}:"
    else:
        value = field.default if values is None else getattr(values, key)
        text = f"{indent}# {key}:" if value is None else f"{indent}{key}: {_yaml(value)}"
    return _comment(text, "; ".join(filter(None, (field.description, allowed(field)))))


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _comment(text: str, comment: str) -> str:
    return f"{text.ljust(COLUMN - 1)} # {' '.join(comment.split())}" if comment else text


def allowed(field: FieldInfo) -> str:
    """The allowed values of a field as text; empty if its type is the only restriction."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    bounds = [
        f"{sign} {bound:g}"
        for item in _metadata(field)
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if (bound := getattr(item, name, None)) is not None
    ]
    return ", ".join(bounds)


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """The constraints of a field and of its annotated types."""
    for item in [*field.metadata, *_inner_metadata(field.annotation)]:
        yield from getattr(item, "metadata", [item])


def _inner_metadata(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        if argument is not type(None):
            yield from getattr(argument, "__metadata__", ())
