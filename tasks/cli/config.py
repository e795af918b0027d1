"""The command that shows the settings of the processes."""

from __future__ import annotations

from tasks.cli.screen import out, print_json, table_of
from tasks.cli.shared import AsJson, command_group, examples, settings_of_environment

app = command_group("Show the settings.")


@app.command(name="show", epilog=examples("sploot-cluster config show"))
def config_show(as_json: AsJson = False) -> None:
    """Show every setting with its value, unit and meaning; secrets are masked."""
    rows = settings_of_environment().table()
    if as_json:
        print_json(rows)
        return
    table = table_of("variable", "value", "meaning")
    for row in rows:
        changed = "" if row["value"] == row["default"] else f" (default {row['default'] or 'empty'})"
        table.add_row(row["variable"], f"{row['value']} {row['unit']}", row["meaning"] + changed)
    out.print(table)
