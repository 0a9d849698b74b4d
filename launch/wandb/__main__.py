"""`python launch/wandb ENTITY/PROJECT`: upload the dashboard to a W&B project, and print its address.

Needs wandb-workspaces (`uv pip install -c constraints.txt --override overrides.txt -e '.[dashboard]'`) and W&B's key
(`wandb login`, or WANDB_API_KEY). Each upload adds a view and leaves the existing ones.

This folder is not a package: `composer launch` puts launch/ first on sys.path, so an __init__.py here would hide wandb.
"""

import sys

from rotary_foundry.utils.installing import install_command


def main(arguments: list[str]) -> int:
    entity, slash, project = arguments[0].partition("/") if len(arguments) == 1 else ("", "", "")
    if not (entity and slash and project):
        print("usage: python launch/wandb ENTITY/PROJECT", file=sys.stderr)
        return 2
    try:
        import wandb
        from dashboard import dashboard

        dashboard(entity, project).save()  # prints the address
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing: {install_command('dashboard')}", file=sys.stderr)
        return 2
    except wandb.Error as error:  # no key, no such project, no network
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
