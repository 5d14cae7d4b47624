"""The door's commands that train nothing: what each takes, and which room it opens."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from synthalign.prompts import Writer


class Parser(argparse.ArgumentParser):
    """One whose mistakes are ours: a line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where to read more."""
        raise ValueError(f"{self.prog}: {message}; {self.prog} --help says more")


def convert(args: list[str]) -> None:
    """Write a set of pairs in another tool's format."""
    parser = Parser(
        prog="synthalign convert",
        description="Write a set of preference pairs in another tool's format, images unchanged.",
    )
    parser.add_argument("pairs", type=Path, help="the set: whatever data.init_args.pairs takes")
    parser.add_argument("out", type=Path, help="folder to write into; it must not exist")
    parser.add_argument(
        "--format",
        required=True,
        choices=["reference", "trl", "trl-jsonl", "rlaif-v"],
        help="the Synth-Align authors' JSON, TRL's rows as parquet or as lines of JSON, RLAIF-V's columns as parquet",
    )
    parser.add_argument("--images", type=Path, help="folder of the images that rows name by path (beside the pairs)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this dataset of the hub, too")
    parser.add_argument("--private", action="store_true", help="make that dataset private")
    options = parser.parse_args(args[1:])
    if options.private and not options.push:
        raise ValueError("--private says how to --push: name the dataset with --push OWNER/NAME")

    from synthalign.pipeline import summary
    from synthalign.tables import check_repo, push_folder, read_pairs, write_pairs

    if options.push:
        check_repo(options.push)
    pairs = read_pairs(options.pairs, options.images)
    write_pairs(pairs, options.out, options.format)
    place = str(options.out)
    if options.push:
        place += f" and {push_folder(options.out, options.push, private=options.private)}"
    sys.stdout.write(f"{place}: {summary(len(pairs.rows), pairs.dropped)}\n")


def prompts(args: list[str]) -> None:
    """Write the prompts file."""
    parser = Parser(
        prog="synthalign prompts",
        description="Write prompts.jsonl: scenes to draw and questions about them, over fifteen categories. Started "
        "again, it goes on where it stopped.",
    )
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--starter", action="store_true", help="copy the sixty hand-made prompts, and stop")
    parser.add_argument("--model", metavar="FOLDER_OR_ID", help="local language model that writes")
    parser.add_argument(
        "--server", metavar="URL", help="OpenAI-compatible server that writes: http://localhost:8000/v1"
    )
    parser.add_argument("--served-model", metavar="NAME", help="name of the model on the server")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the server's key")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="which of the fifteen (all)")
    parser.add_argument("--per-category", type=int, default=100, help="prompts of each category (100)")
    parser.add_argument("--questions", type=int, default=1, help="questions about each scene (1)")
    parser.add_argument("--tries", type=int, default=4, help="attempts allowed for each prompt, on average (4)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (0)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length limit of a reply, tokens (256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (1)")
    parser.add_argument("--top-p", type=float, default=0.95, help="probability that tokens are sampled from (0.95)")
    parser.add_argument("--batch-size", type=int, default=8, help="replies a local model writes at once (8)")
    types = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument(
        "--dtype", default="auto", choices=types, help="of a local model's weights (as they were saved)"
    )
    parser.add_argument("--quantization", choices=["nf4", "int8"], help="keep a local model's weights in 4 or 8 bits")
    parser.add_argument("--device", default="auto", help="of a local model (auto)")
    parser.add_argument("--max-concurrency", type=int, default=16, help="requests a server gets at once (16)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="silence a server is allowed, seconds (300)")
    options = parser.parse_args(args[1:])

    from synthalign import prompts

    if options.starter:
        sys.stdout.write(f"The starter set is in {prompts.copy_starter(options.out)}\n")
        return
    written = prompts.write(
        _writer(options),
        options.out,
        categories=options.categories or tuple(prompts.CATEGORIES),
        per_category=options.per_category,
        num_questions=options.questions,
        seed=options.seed,
        tries=options.tries,
    )
    sys.stdout.write(f"{written}\n")


def _writer(options: argparse.Namespace) -> "Writer":
    sampling = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p")}
    if (options.model is None) == (options.server is None):
        raise ValueError("who is to write? Give --model FOLDER_OR_ID or --server URL, or take --starter")
    if options.model is not None:
        from synthalign.vlm import LLM

        there = {name: getattr(options, name) for name in ("dtype", "quantization", "device", "batch_size")}
        return LLM(model=options.model, **there, **sampling)
    if options.served_model is None:
        raise ValueError("--server needs --served-model, the name of the model on it")
    from synthalign.clients import ServedLLM

    there = {name: getattr(options, name) for name in ("api_key_env", "max_concurrency", "timeout_s")}
    return ServedLLM(base_url=options.server, model=options.served_model, **there, **sampling)


def gallery(args: list[str]) -> None:
    """Write the page of a synthesis."""
    parser = Parser(
        prog="synthalign gallery",
        description="Write one HTML file that shows what a synthesis drew, said, chose and refused.",
    )
    parser.add_argument("run", type=Path, help="a store of landings, a .table file in one, or a training run's folder")
    parser.add_argument("--out", type=Path, help="file to write (gallery.html in the folder, or beside the table)")
    parser.add_argument("--max-mb", type=float, default=100.0, help="largest size; images shrink to keep to it (100)")
    options = parser.parse_args(args[1:])

    from synthalign.pages.gallery import write

    written = write(options.run, options.out, max_mb=options.max_mb)
    size = written.path.stat().st_size / 1e6
    sys.stdout.write("\n".join([written.headline, *written.notes, f"Gallery: {written.path} ({size:.1f} MB)", ""]))


def report(args: list[str]) -> None:
    """Write the page of a run's evaluations."""
    parser = Parser(
        prog="synthalign report",
        description="Write one HTML file that shows what became of a run's model: curves, bars, and the answers that "
        "changed, with their images.",
    )
    parser.add_argument("run", type=Path, help="a run's folder, or the results.json in it")
    parser.add_argument("--out", type=Path, help="file to write (report.html in the folder)")
    parser.add_argument("--max-mb", type=float, default=50.0, help="largest size; images shrink to keep to it (50)")
    options = parser.parse_args(args[1:])

    from synthalign.pages.report import write

    written = write(options.run, options.out, max_mb=options.max_mb)
    size = written.path.stat().st_size / 1e6
    sys.stdout.write("\n".join([written.headline, *written.notes, f"Report: {written.path} ({size:.1f} MB)", ""]))


def export(args: list[str]) -> None:
    """Write what a run trained as other tools load it."""
    parser = Parser(
        prog="synthalign export",
        description="Write what a run trained in a form that other tools load, with a model card: its adapter, which "
        "plain transformers and peft put on the base; or, merged into the base, a model that servers serve.",
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a checkpoint of it: RUN/checkpoints/best.ckpt")
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder to write (RUN/export/adapter, or merged); an older export is replaced"
    )
    parser.add_argument("--merged", action="store_true", help="write a whole model, which needs neither base nor peft")
    parser.add_argument("--base", metavar="FOLDER_OR_ID", help="where the base is, if not where the run had it")
    parser.add_argument(
        "--base-name", metavar="OWNER/NAME", help="what the base is on the hub, if it is a folder here; @REVISION too"
    )
    types = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument(
        "--dtype", default="auto", choices=types, help="of a merged model's weights (as the base's are)"
    )
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest size of a file of weights, GB (5)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="TEST",
        help="a test of this adapter, whose evaluations the card shows (the run's)",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the folder to this model of the hub, too; its card holds the run's configuration, paths and all",
    )
    parser.add_argument("--private", action="store_true", help="make that model private")
    options = parser.parse_args(args[1:])
    if options.private and not options.push:
        raise ValueError("--private says how to --push: name the model with --push OWNER/NAME")

    from synthalign.dpo.policy import LoRA
    from synthalign.export import check_repo, push, write

    if options.push:
        check_repo(options.push)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks transformers by the old name
    written = write(
        options.run,
        options.out,
        merged=options.merged,
        base=options.base,
        base_name=options.base_name,
        dtype=options.dtype,
        shard_gb=options.shard_gb,
        results=options.results,
        repo=options.push,
        lora=LoRA,
    )
    sys.stdout.write("\n".join([*written.notes, written.headline, ""]))
    if options.push:
        sys.stdout.write(f"Pushed: {push(written.path, options.push, private=options.private)}\n")


def questions(args: list[str]) -> None:
    """Write a benchmark's questions or truth."""
    parser = Parser(
        prog="synthalign questions", description="Write a benchmark's questions or truth for images of yours."
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="pope|chair")
    pope = benchmarks.add_parser("pope", help="yes/no questions about objects: random, popular and adversarial ones")
    pope.add_argument("objects", type=Path, help="JSON lines of {image, objects}, or COCO's instances JSON")
    pope.add_argument("out", type=Path, help="folder to write into")
    pope.add_argument("--num-images", type=int, default=500, help="images to ask about (500)")
    pope.add_argument("--per-image", type=int, default=3, help="objects of an image, each with an absent one (3)")
    pope.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    chair = benchmarks.add_parser("chair", help="what is in COCO's images, by its own annotations")
    chair.add_argument("out", type=Path, help="file to write")
    chair.add_argument("--instances", type=Path, required=True, help="COCO's instances JSON")
    chair.add_argument("--captions", type=Path, help="COCO's captions JSON, whose objects count as well")
    chair.add_argument("--synonyms", type=Path, required=True, help="one object a line, its synonyms after commas")
    chair.add_argument(
        "--words", choices=["plain", "wordnet"], default="plain", help="CHAIR's variant: words as they are, or lemmas"
    )
    chair.add_argument("--answers", type=Path, help="saved captions, whose images alone are written")
    options = parser.parse_args(args[1:])

    if options.benchmark == "pope":
        from synthalign.evals.pope import build as pope_build

        said = str(
            pope_build.write(
                options.objects,
                options.out,
                num_images=options.num_images,
                per_image=options.per_image,
                seed=options.seed,
            )
        )
    else:
        from synthalign.evals.chair import truth as chair_truth
        from synthalign.evals.chair.lemmas import WordNetWords

        count = chair_truth.write(
            options.out,
            instances=options.instances,
            captions=options.captions,
            synonyms=options.synonyms,
            words=WordNetWords() if options.words == "wordnet" else None,
            answers=options.answers,
        )
        said = f"What is in {count} images is in {options.out}"
    sys.stdout.write(f"{said}\n")


def world(args: list[str]) -> None:
    """Write the offline world."""
    parser = Parser(
        prog="synthalign world",
        description="Write the offline world: prompts to draw, and benchmarks with their truth.",
    )
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; the benchmarks are always the same")
    parser.add_argument("--num-prompts", type=int, default=500, help="prompts to write (500)")
    parser.add_argument("--num-scenes", type=int, default=400, help="held-out test scenes (400)")
    options = parser.parse_args(args[1:])

    from synthalign.world.data import write

    write(options.out, seed=options.seed, num_prompts=options.num_prompts, num_scenes=options.num_scenes)
    sys.stdout.write(f"The offline world is in {options.out}: prompts.jsonl, objects.txt, validation/, heldout/\n")
