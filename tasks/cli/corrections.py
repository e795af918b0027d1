"""One command for each correction verb, built from the fields of its request."""

from __future__ import annotations

from inspect import Parameter, Signature
from shlex import quote
from typing import Annotated, Any

import typer

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request
from sploot_cluster.fields import ID, Field, ListOf, OneOf, Text, Whole, required_of
from tasks.cli.shared import AsJson, By, Pet, Wait, command_group, examples, open_service, open_tasks, report

app = command_group()


def _command(request: type[Request[Any]]) -> Any:
    """Return a function whose signature Typer reads: the pet, the request's own fields, common options."""
    own = {name: field for name, field in request.body().items() if name != "pet_id"}

    def command(*, pet: int, by: str, wait: float | None, as_json: bool, **given: Any) -> None:
        asked = request(pet_id=pet, requested_by=by, **given)
        with open_service() as service:
            service.check(asked)
        with open_tasks() as tasks:
            report(tasks, tasks.correct(asked), wait, as_json=as_json)

    parameters = [_parameter("pet", Pet)]
    parameters += [_own_parameter(name, field, is_required=name in required_of(request)) for name, field in own.items()]
    parameters += [_parameter("by", By), _parameter("wait", Wait, None), _parameter("as_json", AsJson, False)]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = request.description()
    return command


def _example(request: type[Request[Any]]) -> str:
    """Return an example command for a correction, with the example of each field of its request."""
    words = ["sploot-cluster", request.verb, "42"]
    for name, field in request.body().items():
        if name == "pet_id":
            continue
        parts = map(str, field.example if isinstance(field.example, list | tuple) else [field.example])
        is_of_items = isinstance(field.kind, ListOf) and field.kind.of != ID
        is_option = is_of_items or name not in required_of(request)
        option = f"--{(name if name not in required_of(request) else name.removesuffix('_ids')).replace('_', '-')}"
        words += [word for part in map(quote, parts) for word in ([option, part] if is_option else [part])]
    return " ".join(words)


def _own_parameter(name: str, field: Field, *, is_required: bool) -> Parameter:
    """Return the parameter for a field: an argument if it is required and not a list of items, otherwise an option."""
    type_: Any
    match field.kind:
        case Whole():
            type_, metavar = int, "ID" if name.endswith("_id") else name.upper()
        case ListOf(of=Whole()):
            type_, metavar = list[int], "ID ID..."
        case ListOf():
            type_, metavar = list[str], ""
        case Text() | OneOf():
            type_, metavar = str, name.upper()
        case _:
            raise TypeError(f"{name} has a kind that no command can take: {field.kind}")
    if not is_required:
        return _parameter(name, Annotated[type_ | None, typer.Option(help=field.description)], None)
    if type_ == list[str]:
        option = typer.Option(f"--{name.removesuffix('_ids')}", help=f"{field.description} Repeat the option for more.")
        return _parameter(name, Annotated[type_, option])
    return _parameter(name, Annotated[type_, typer.Argument(help=field.description, metavar=metavar)])


def _parameter(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


for _verb, _request in VERBS.items():
    app.command(_verb, epilog=examples(_example(_request)))(_command(_request))
