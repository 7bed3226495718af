"""A run's newest checkpoint as a Hugging Face directory, and from there to the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.data.files import digest
from alanything_jax.hub.peft import save_adapter
from alanything_jax.hub.save import MANIFEST, file_hash
from alanything_jax.sharding import distributed
from alanything_jax.training.restore import load_run, recipe_of
from alanything_jax.training.run_dir import locate

_ALIGN_ANYTHING = "CC-BY-NC-4.0 (Align Anything): not for commercial use"
# What the card says of the moment, not of the weights.
_PASSING = ("package",)


def export(
    run_dir: str | Path, out_dir: str | Path | None = None, *, adapter: bool = False
) -> Path:
    """Export a run. On several processes all must call it; the first one writes.

    Args:
      run_dir: what `alanything train` wrote.
      out_dir: new or empty; default `<run_dir>/export`.
      adapter: write the LoRA alone, in PEFT's layout, instead of merged weights.

    Raises:
      ValueError: `adapter` of a run that trained the weights; a non-empty `out_dir`.
    """
    out = Path(out_dir) if out_dir else Path(run_dir) / "export"
    restored = load_run(run_dir)
    if not distributed.is_primary():
        return out
    recipe = restored.experiment
    notes = card_notes(recipe, restored.step)
    if adapter:
        if restored.adapter is None:
            raise ValueError(
                f"{run_dir} trained the weights, not an adapter: export it without "
                "--adapter."
            )
        bundle = _named(restored.bundle, recipe)
        return save_adapter(bundle, restored.adapter, recipe.adapter, out, notes=notes)
    return hub.save(_named(restored.merged(), recipe), out, notes=notes)


def _named(bundle, recipe):
    """Under the name that the recipe has for its base, not where that lies here."""
    return dataclasses.replace(bundle, source=recipe.model.path)


def card_notes(recipe: recipes.Experiment, step: int) -> dict[str, Any]:
    """What the model card says of a training: name -> value."""
    data = recipe.data
    names = ("align_anything", "align-anything")
    ours = data.format == names[0] or bool(data.subset)
    restricted = ours or any(name in path for path in data.paths for name in names)
    return {
        "recipe": recipe.name,
        "configuration": digest(recipes.to_json(recipe)),
        "algorithm": json.dumps(recipes.to_json(recipe.algorithm)),
        "data": " + ".join(map(_public, data.paths)),
        **({"data licence": _ALIGN_ANYTHING} if restricted else {}),
        "optimizer steps": step,
        "package": _package(),
    }


def _public(path):
    """Without the folders of this machine."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def _package():
    """The commit of a checkout, the version of an installed package."""
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git and (root / ".git").exists():
        command = [git, "-C", str(root), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return f"alanything_jax, commit {found.stdout.strip()}"
    try:
        return f"alanything_jax {metadata.version('alanything_jax')}"
    except metadata.PackageNotFoundError:
        return "alanything_jax, of an unknown version: not installed, no git checkout"


def push(
    run_dir: str | Path,
    out_dir: str | Path,
    repository: str,
    *,
    adapter: bool = False,
    dry_run: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Export a run, and upload that to a private repository of the Hugging Face hub.

    Args:
      out_dir: new or empty, or what `export` has written of this checkpoint.
      repository: `owner/name`; made if it is not there.
      dry_run: only say what would be uploaded, and the command that does it.

    Raises:
      ValueError: no such name, no token; a repository that others can read; an `out_dir`
        of something else.
      OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub.utils import validate_repo_id

    if repository.count("/") != 1:
        raise ValueError(f"--push {repository!r}: write it as owner/name.")
    validate_repo_id(repository)
    # Before what may take an hour.
    api = None if dry_run or not distributed.is_primary() else _api(repository)
    out = Path(out_dir)
    if out.is_dir() and any(out.iterdir()):
        _check_same(run_dir, out, adapter)
    else:
        export(run_dir, out, adapter=adapter)
    if not distributed.is_primary():
        return out
    say("dry run: nothing is uploaded" if dry_run else f"uploading {out}")
    say(f"repository: {repository}, private, made if it is not there")
    sizes = {p: p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()}
    for path, size in sizes.items():
        say(f"{size:>16,}  {path.relative_to(out)}")
    say(f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files")
    if api is None:
        words = ["alanything", "export", str(run_dir), str(out_dir)]
        words += ["--adapter"] if adapter else []
        words += ["--push", repository, "--no-dry-run"]
        say(f"to upload them: {shlex.join(words)}")
        return out
    _upload(api, out, repository)
    say(f"uploaded to https://huggingface.co/{repository}")
    return out


def _check_same(run_dir, out, adapter):
    """Raise unless `out` holds the export of the run's newest checkpoint, unchanged."""
    run = locate(run_dir, to_read=True)
    recipe = recipe_of(run)
    with checkpoints.manager(run.checkpoints, recipe.train.keep) as saved:
        step = checkpoints.latest_step(saved)
    now = {name: str(value) for name, value in card_notes(recipe, step).items()}
    written = out / MANIFEST
    found = json.loads(written.read_text()) if written.exists() else {}
    then = found.get("notes", {})
    kept = [name for name in now if name not in _PASSING]
    differ = [name for name in kept if now[name] != then.get(name)]
    if (out / "adapter_config.json").exists() != adapter:
        differ.append("--adapter")
    hashes = found.get("sha256", {})
    differ += [name for name in hashes if file_hash(out / name) != hashes[name]]
    if differ:
        raise ValueError(
            f"{out} is not empty, and not what {run_dir} is exported to now (differ: "
            f"{', '.join(differ)}). Give another directory, or remove it first."
        )


def _api(repository):
    """The hub as the user of the token, who is asked for at once."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise ValueError(
            "no Hugging Face token. Set HF_TOKEN to one that may write, or run "
            "`hf auth login`; without --no-dry-run none is needed."
        )
    api = HfApi(token=token)
    with _reaching(repository, token):
        api.whoami()
    return api


@contextlib.contextmanager
def _reaching(repository, token):
    """What the hub or the network raises, as one error that never holds the token."""
    try:
        yield
    except Exception as error:
        said = str(error).replace(token, "***")
        raise OSError(
            f"could not push to {repository}: {type(error).__name__}: {said}. Check the "
            "network, the name, and that the token may write there."
        ) from None


def _upload(api, out, repository):
    with _reaching(repository, api.token):
        api.create_repo(repository, private=True, exist_ok=True)
        private = api.model_info(repository).private
    if not private:
        # An old repository stays as it is, whatever `create_repo` is asked for.
        raise ValueError(
            f"{repository} is there already and is public: nothing was uploaded. Make it "
            "private on the hub, or give another name."
        )
    with _reaching(repository, api.token):
        api.upload_folder(
            repo_id=repository,
            folder_path=out,
            commit_message="Exported by alanything_jax",
        )
