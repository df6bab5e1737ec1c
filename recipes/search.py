"""Search for settings of recipes/train.py: every trial is a training of its own, in a process.

Data:     what the configuration names; the score of its dev set is what shall be high.
Command:  python recipes/search.py --config recipes/configs/topics.yaml --folder out/search \
              --trials 20 --search learning_rate=1e-4..1e-2:log reduction=4,16,64
          LOW..HIGH is a range (of whole numbers, if both are), :log draws from it on a logarithmic
          scale, a,b,c are choices. Every key of a configuration can be searched. Flags of train.py
          follow after --. The same command goes on where a search was stopped.
          Many processes: --launcher "accelerate launch --num_processes 2".
Result:   on stdout, as YAML, the configuration with the best settings; in --folder, its run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from adapterx.errors import AdapterError, ConfigError, DependencyError
from adapterx.training.yaml_file import parse_yaml, read_yaml

TRAIN = Path(__file__).with_name("train.py")
# So many failed trainings in a row are no matter of the settings.
PATIENCE = 3


def parse_space(texts: list[str]) -> dict[str, Any]:
    """Return what each key is drawn from.

    Raises:
        ConfigError: If a text is neither a range nor choices.
    """
    from optuna import distributions

    space: dict[str, Any] = {}
    for text in texts:
        key, _, values = text.partition("=")
        values, _, scale = values.partition(":")
        low, dots, high = values.partition("..")
        try:
            if not key or not values or scale not in ("", "log"):
                raise ValueError("it is neither a range nor choices")
            if not dots:
                choices = [parse_yaml(part) for part in values.split(",")]
                space[key] = distributions.CategoricalDistribution(choices)
            elif low.isdigit() and high.isdigit():
                space[key] = distributions.IntDistribution(int(low), int(high), log=bool(scale))
            else:
                ends = float(low), float(high)
                space[key] = distributions.FloatDistribution(*ends, log=bool(scale))
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ConfigError(
                f"{text!r} in --search: {reason}. Write KEY=LOW..HIGH, KEY=LOW..HIGH:log or "
                "KEY=a,b,c."
            ) from error
    return space


def train(settings: dict[str, Any], output: Path, launcher: str, flags: list[str]) -> float:
    """Train in a process of its own; return the dev score.

    Raises:
        AdapterError: If the training failed, or there is no score.
    """
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    command = [*shlex.split(launcher), str(TRAIN), *flags]
    command += ["--config", str(config), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        named = [line for line in lines if line.startswith("train.py: ")]
        raise AdapterError((named or lines)[-1].removeprefix("train.py: "))
    score = json.loads(done.stdout.strip().splitlines()[-1])["score"]
    if score is None:
        raise AdapterError("There is no dev score to go by. Set dev in the configuration.")
    return float(score)


def main(arguments: list[str]) -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description="Search for settings of recipes/train.py.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file for train.py")
    parser.add_argument("--folder", type=Path, required=True, help="of the search and its best run")
    parser.add_argument("--search", nargs="+", required=True, metavar="KEY=LOW..HIGH")
    parser.add_argument("--trials", type=int, default=20, help="in all; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the search; default 0")
    parser.add_argument("--launcher", default=sys.executable, help="what starts train.py")
    parser.add_argument("flags", nargs="*", help="flags for train.py, after --")
    options = parser.parse_args(arguments)
    try:
        import optuna
    except ImportError as error:
        raise DependencyError("The search needs optuna: pip install optuna") from error
    space = parse_space(options.search)
    settings = read_yaml(options.config)

    # The study is a file: a search that was stopped goes on with what it knows.
    options.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{options.folder.resolve() / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=options.seed + len(study.trials))

    # Trials: draw, train, tell.
    failed = 0
    while (done := sum(one.value is not None for one in study.trials)) < options.trials:
        trial = study.ask(space)
        shown = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in trial.params.items()
        )
        output = options.folder / f"trial-{trial.number}"
        try:
            score = train({**settings, **trial.params}, output, options.launcher, options.flags)
        except AdapterError as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"trial {trial.number} failed: {error} ({shown})", file=sys.stderr)
            failed += 1
            if failed == PATIENCE:
                raise
            continue
        failed = 0
        study.tell(trial, score)
        print(f"{done + 1}/{options.trials}: {score:.4f} ({shown})", file=sys.stderr)
        # Only the best run stays: a whole model takes room.
        for other in options.folder.glob("trial-*"):
            if other.name.split(".")[0] != f"trial-{study.best_trial.number}":
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    best = {**settings, **study.best_params}
    print(f"# dev score {study.best_value:.4f}, the best of {done} trials")
    print(yaml.safe_dump(best, sort_keys=False, allow_unicode=True), end="")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AdapterError as error:
        print(f"search.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
