"""The command line: parse, call, print."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stalwart.cli.memory import keep_memory
from stalwart.cli.options import Address, DataDir, Device, NoDownload, Out, Overrides, Workers
from stalwart.cli.summary import print_comparison, print_report, print_runs
from stalwart.core.errors import RunsFailedError, StalwartError, UsageError

_INTERRUPTED = 130
_NO_MEMORY = "out of memory; use a smaller training.batch_size or fewer --samples."

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train robust networks, attack them honestly, read the result on one page.",
)


@app.callback()
def settings(
    system_malloc: Annotated[
        bool, typer.Option("--system-malloc", help="Leave the C library's memory allocator as it is.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads for torch.")] = None,
) -> None:
    """Settings of the process."""
    if not system_malloc:
        keep_memory()
    if threads:
        import torch

        torch.set_num_threads(threads)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `stalwart list recipes`) or a YAML file.")],
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    device: Device = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Train one run from a recipe."""
    from stalwart.recipes import load_recipe
    from stalwart.recipes.runs import Source
    from stalwart.recipes.runs import train as train_run

    chosen = load_recipe(recipe, overrides or [])
    folder = out or Path("runs") / chosen.name
    train_run(chosen, folder, Source(data_dir, not no_download), resume, device)
    if os.environ.get("RANK", "0") == "0":
        print(f"trained {chosen.name}: {folder / 'model.safetensors'}\nnext: stalwart evaluate {folder}")


@app.command()
def convert(
    options: Annotated[
        list[str] | None, typer.Argument(help="A run folder, then options of the method such as percentile=99.7.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="snn, nir or onnx.")] = "snn",
    method: Annotated[
        str | None, typer.Option("--method", help="How thresholds are found: see `stalwart list conversions`.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Time steps for one input; 8 by default.")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="direct, poisson, ...; direct by default.")] = None,
    max_pool: Annotated[str | None, typer.Option("--max-pool", help="refuse, or spikes.")] = None,
    lossy: Annotated[
        str | None, typer.Option("--lossy", help="What NIR may lose, such as soft-reset,initial; nothing by default.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A foreign model: pkg.module:factory.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its weights, a safetensors file.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data for a foreign model: a name, a .npz file or an image folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder, or file of --to nir and onnx.")
    ] = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Turn a run's or a foreign network into a spiking one, or write it for other tools."""
    from stalwart.cli.converting import Wish, convert_foreign, convert_run
    from stalwart.recipes.runs import Source

    source, words = Source(data_dir, not no_download), options or []
    wish = Wish(to, method, steps, encoder, max_pool, lossy, [word for word in words if "=" in word])
    folders = [Path(word) for word in words if "=" not in word]
    if len(folders) + (model is not None) != 1:
        raise UsageError("name a run folder, or a foreign model with --model pkg.module:factory; one of the two.")
    if model is None:
        if weights or dataset:
            raise UsageError("--weights and --dataset belong to --model; a run has its own.")
        print(convert_run(folders[0], wish, source, out))
    else:
        print(convert_foreign(model, weights, dataset, wish, source, out))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder; leave it out with --model.")] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="One of `stalwart list suites`.")] = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", help="Radius, such as 0.1 or 8/255; of l0 and events a number of pixels or flips."),
    ] = None,
    norm: Annotated[str | None, typer.Option("--norm", help="linf, l2, l1, l0 or events.")] = None,
    curve: Annotated[str | None, typer.Option("--curve", help="Further radii, such as 2/255,4/255.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="The first so many test inputs.")] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="single, mean-softmax or mean-network.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A foreign model: pkg.module:factory.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its weights, a safetensors file.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data for a foreign model: a name, a .npz file or an image folder.")
    ] = None,
    certify: Annotated[
        str | None, typer.Option("--certify", help="Certify by these methods, such as ibp,crown-ibp; or none.")
    ] = None,
    chips: Annotated[
        int | None, typer.Option("--chips", min=0, help="Chips of each imperfect processor; of suite hardware 25.")
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(
            "--corruptions", help="Severities of common corruptions, such as 1,3,5, or none; see suite corruptions."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Inputs attacked together, on which results depend; what suits the model."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    workers: Workers = None,
    address: Address = None,
    out: Out = None,
    device: Device = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Attack a trained run or a foreign model, and write its report."""
    from stalwart.cli.evaluating import Wish, evaluate_foreign, evaluate_run
    from stalwart.recipes.runs import Source

    source = Source(data_dir and data_dir.absolute(), not no_download)
    changes: dict[str, Any] = {
        "suite": suite,
        "eps": eps,
        "norm": norm,
        "curve": curve.split(",") if curve else None,
        "samples": samples,
        "rule": rule,
        "chips": chips,
        "batch_size": batch_size,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if corruptions is not None:
        changes["corruptions"] = [] if corruptions == "none" else corruptions.split(",")
    if certify is not None:
        changes["certify"] = None if certify == "none" else {"methods": certify.split(",")}
    wish = Wish(changes, seed, workers, address, out, device)
    if (run is None) == (model is None):
        raise UsageError("name a run folder, or a foreign model with --model pkg.module:factory; one of the two.")
    if run is not None:
        if weights or dataset:
            raise UsageError("--weights and --dataset belong to --model; a run has its own.")
        report, folder = evaluate_run(run, wish, source)
    else:
        assert model is not None
        report, folder = evaluate_foreign(model, weights, dataset, wish, source)
    print_report(report, folder)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `stalwart list recipes`) or a YAML file.")],
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None, typer.Option("--over", help="Values to vary, such as seed=0,1,2; once for each key.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    out: Out = None,
    device: Device = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Train and evaluate a recipe over all combinations of values, here or on a Ray cluster; finished runs are skipped."""
    from stalwart.cli.scaling import sweep_recipe
    from stalwart.recipes.runs import Source

    source = Source(data_dir and data_dir.absolute(), not no_download)
    combined, folder, failed = sweep_recipe(recipe, over or [], overrides or [], out, source, workers, address, device)
    if combined is not None:
        print_report(combined, folder)
    if failed:
        raise RunsFailedError(f"{len(failed)} of the runs failed: {'; '.join(failed)} Run again to try these.")


@app.command()
def certify(
    target: Annotated[Path, typer.Argument(help="A run folder, or an .onnx network.")],
    prop: Annotated[Path | None, typer.Argument(help="A .vnnlib property, plain or .gz, for an .onnx network.")] = None,
    eps: Annotated[str | None, typer.Option("--eps", help="Radius of the Linf box; by default the recipe's.")] = None,
    smoothing: Annotated[
        str | None, typer.Option("--smoothing", help="Certify in L2 by Gaussian noise of this standard deviation.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="In the order to try, such as ibp,crown,branch-and-bound; by default the recipe's.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="The first so many test inputs; the recipe's, or 100.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds for one property or one input; the recipe's, or 60.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Noise draws for each smoothed input.")] = 100_000,
    alpha: Annotated[float, typer.Option("--alpha", help="Chance that a smoothed certificate is false.")] = 0.001,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="VNN-COMP result file of a property.")] = None,
    device: Device = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Prove robustness: an ONNX network for a VNN-LIB property, or a run for its test inputs; resumes by itself."""
    from stalwart.cli.certifying import SAMPLES, TIMEOUT, certify_property, certify_run, certify_smoothed
    from stalwart.recipes import runs

    if target.suffix == ".onnx":
        if prop is None or eps or smoothing or methods:
            raise UsageError("an .onnx network needs a .vnnlib property, and takes --timeout, --seed and --out only.")
        print(certify_property(target, prop, TIMEOUT if timeout is None else timeout, seed, out))
        return
    if prop is not None or out is not None:
        raise UsageError("a property and --out belong to an .onnx network; a run's results go into its folder.")
    source = runs.Source(data_dir, not no_download)
    if smoothing is None:
        print(certify_run(target, source, eps, samples, timeout, methods, seed))
    elif eps or methods:
        raise UsageError("--smoothing certifies every radius at once; leave out --eps and --methods.")
    else:
        print(certify_smoothed(target, source, smoothing, samples or SAMPLES, n, alpha, seed, device))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Evaluated runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("report"),
    title: Annotated[str, typer.Option("--title")] = "Robustness report",
) -> None:
    """Place evaluated runs side by side on one page."""
    from stalwart.core.errors import FileError
    from stalwart.report import side_by_side

    for folder in folders:
        if folder.is_dir() and not (folder / "report.json").exists():
            raise FileError(f"{folder} has no report.json; run `stalwart evaluate {folder}` first.")
    combined = side_by_side(folders, title)
    combined.save(out)
    print_runs(combined)
    print_comparison(combined)
    print(f"report: {out / 'index.html'}")


@app.command()
def claim(
    run: Annotated[Path, typer.Argument(help="A run evaluated with --suite autoattack.")],
    told: Annotated[
        list[str] | None,
        typer.Argument(help="What its authors tell, such as link=... venue=... additional_data=false."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; claim.json in the run's folder.")] = None,
) -> None:
    """Write a run's robustness as a RobustBench-style record (JSON)."""
    from stalwart.cli.claiming import write_claim

    print(write_claim(run, told or [], out))


@app.command()
def samples(
    width: Annotated[
        str | None, typer.Option("--width", help="Of the 95 % interval, end to end, such as 0.02.")
    ] = None,
    rate: Annotated[str, typer.Option("--rate", help="The accuracy expected; 0.5 is the worst case.")] = "0.5",
    difference: Annotated[
        str | None, typer.Option("--difference", help="Of two models, to detect, such as 0.02.")
    ] = None,
    disagreement: Annotated[
        str, typer.Option("--disagreement", help="Inputs that one of both alone gets right.")
    ] = "0.2",
    power: Annotated[str, typer.Option("--power", help="The chance to detect it.")] = "0.8",
) -> None:
    """Say how many inputs an evaluation needs, for an interval of a width or for a difference between two models."""
    from stalwart.core.numbers import parse_number
    from stalwart.evaluation.statistics import samples_for_difference, samples_for_width

    if (width is None) == (difference is None):
        raise UsageError("name --width of an interval, or --difference between two models; one of the two.")
    if width is not None:
        print(samples_for_width(parse_number(width), parse_number(rate)))
    else:
        print(samples_for_difference(parse_number(difference), parse_number(disagreement), parse_number(power)))


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="recipes, attacks, objectives, models, noises, datasets, conversions, devices, corruptions, bounds, suites."
        ),
    ] = "all",
) -> None:
    """Show what there is, with every option and its default."""
    from stalwart.cli.listing import listing

    print(listing(what))


@app.command()
def doctor(
    target: Annotated[
        Path | None, typer.Argument(help="A run folder or an .onnx file; leave it out for the machine alone.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A foreign model: pkg.module:factory.")] = None,
    shape: Annotated[str | None, typer.Option("--shape", help="One input of a foreign model, such as 1,28,28.")] = None,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
) -> None:
    """Say what this machine offers, and which operators of a model bounds do not know."""
    from stalwart.cli.doctor import diagnose, machine, subject
    from stalwart.recipes.runs import Source

    if target is not None and model is not None:
        raise UsageError("name a run folder or .onnx file, or a foreign model with --model; one of the two.")
    print(machine())
    if target is None and model is None:
        return
    text, fine = diagnose(*subject(target, model, shape, Source(data_dir, not no_download)))
    print(text)
    if not fine:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
) -> None:
    """Tell the whole story on embedded data in minutes: train one small model of each family, attack all, report."""
    from stalwart.cli.demo import tell

    print_report(tell(out), out.resolve())


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; deliberate errors become one message and an exit code, never a traceback."""
    try:
        # Not standalone, so that wrong options too are reported by one message and not by a drawing.
        code = app(args=(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except StalwartError as problem:
        _fail(str(problem), problem.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; a training run goes on with --resume.", _INTERRUPTED)
    except MemoryError:
        _fail(_NO_MEMORY, 1)
    except Exception as problem:
        if "out of memory" in str(problem).lower() or "can't allocate memory" in str(problem).lower():
            _fail(_NO_MEMORY, 1)
        if hasattr(problem, "format_message"):  # a wrong option; typer's exception classes are not public
            _fail(f"{problem.format_message().rstrip('.')}. See `stalwart --help`.", 2)
        if os.environ.get("STALWART_DEBUG"):
            raise
        _fail(f"{type(problem).__name__}: {problem} (set STALWART_DEBUG=1 for the traceback)", 1)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
