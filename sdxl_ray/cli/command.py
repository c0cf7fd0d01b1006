"""A command that names the setting for an option that it has not: settings have no dashes, other trainers' flags do."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from sdxl_ray.errors import UserError


class Command(TyperCommand):
    """Says what to write for `--learning_rate 1e-4` or `--optim.lr=1e-4`; a misspelt option gets typer's suggestion."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Its class is click's, or typer's own copy of it, which the version of typer decides.
            if type(error).__name__ != "NoSuchOption" or all(param.name != "settings" for param in self.params):
                raise
            option = str(getattr(error, "option_name", ""))
            fix = _fix(option.lstrip("-").replace("-", "_"))
            if fix is None:
                raise
            raise UserError(f"no option {option!r}: {fix}") from None


def _fix(name: str) -> str | None:
    from sdxl_ray.config.recipe import meaning_of, settings

    if name in settings():
        return f"settings are written without dashes, {name}=VALUE"
    meant = meaning_of(name)
    return f"{meant} (settings are written without dashes)" if meant else None
