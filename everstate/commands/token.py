"""`everstate token …`: who may use the HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, printable, show


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Tokens of the HTTP API.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token")


def create(
    name: Annotated[str, typer.Argument(help="Whose it is; unique among valid tokens.")],
    role: Annotated[str, typer.Option("--role", help="viewer, operator or admin.")] = "viewer",
    grant: Annotated[
        list[str] | None, typer.Option("--grant", help="payload: may see payloads.")
    ] = None,
    days: Annotated[int, typer.Option("--days", help="How long it is valid.")] = 90,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Make a token and print it, this once."""
    body = {"name": name, "role": role, "grants": grant or [], "days": days}
    with control(url, wait) as admin:
        made = admin.post("/api/v1/tokens", body)
    if as_json:
        show(made)
        return
    typer.echo(f"{made['role']} token {made['name']}, valid until {made['expires_at']}", err=True)
    typer.echo(made["token"] or "made by an earlier try whose answer was lost; revoke it", nl=True)


def list_tokens(
    as_json: Json = False, limit: Limit = None, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """List tokens, also those that have ended; never their secrets."""
    with control(url, wait) as admin:
        for row in admin.rows("/api/v1/tokens", limit=limit):
            if as_json:
                show(row)
            else:
                grants = f" +{','.join(row['grants'])}" if row["grants"] else ""
                used = (row["last_used_at"] or "never")[:16]
                typer.echo(
                    f"{row['state']:<8} {row['role'] + grants:<16} {printable(row['name'])}"
                    f"  until {row['expires_at'][:10]}, used {used}"
                )


def revoke(
    name: Annotated[str, typer.Argument(help="Its name or id.")],
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """End a token at once."""
    from urllib.parse import quote

    with control(url, wait) as admin:
        ended = admin.post(f"/api/v1/tokens/{quote(name, safe='')}/revoke")
    if as_json:
        show(ended)
    else:
        typer.echo(f"revoked {printable(ended['name'])}")
