"""`python -m gluon_resnetv2 VERB`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gluon_resnetv2 import cli
from gluon_resnetv2.deploy import server
from gluon_resnetv2.distributed import launch as launch_module
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.native import add_engine
from gluon_resnetv2.profiling import options as profiling_options
from gluon_resnetv2.spec import IMAGE_SIZE_MAX
from gluon_resnetv2.study import options as study_options
from gluon_resnetv2.training import options as training_options
from gluon_resnetv2.training.recipes import RECIPES

# Of `interop.convert`, which needs MXNet.
LAYOUTS = (
    *("symbolic", "model-zoo", "gluoncv-cifar", "timm"),
    *("torch-fb", "torch-fb-cifar", "torch-kaiming", "torch-preresnet", "keras"),
)


def doctor(_options) -> int:
    from gluon_resnetv2 import doctor

    return doctor.main()


def models(_options) -> None:
    from gluon_resnetv2.paper import table

    print(table())


def export(options) -> None:
    from gluon_resnetv2.deploy.export import Form, export_run
    from gluon_resnetv2.training.datasets import training_images
    from gluon_resnetv2.training.options import run_recipe

    if options.calibration_images < 1:
        raise UserError(
            f"--calibration-images must be at least 1, not {options.calibration_images}"
        )

    def calibration():
        recipe = run_recipe(options.run)
        if options.data_dir:
            recipe = dataclasses.replace(recipe, data_dir=options.data_dir)
        return training_images(recipe, options.calibration_images)

    form = Form(
        values="pixels" if options.pixels else "normalised",
        output="probabilities" if options.softmax else "logits",
        precision=options.precision,
        fused=options.fused,
    )
    artifact = export_run(
        options.run,
        options.output,
        options.checkpoint,
        form=form,
        calibration=calibration,
        onnx=options.to == "onnx",
        server=options.server,
    )
    print(f"exported {artifact.name} to {artifact.folder}")


def recipes(_options) -> None:
    print("\n".join(recipe.about(name) for name, recipe in RECIPES.items()))


def launch(options) -> int:
    return launch_module.main(options)


def compare(options) -> None:
    from gluon_resnetv2.training.compare import compare

    print(compare(options.runs, options.output))


def evaluate(options) -> None:
    from gluon_resnetv2.training.assess import assess
    from gluon_resnetv2.training.devices import contexts

    if options.cpus < 1:
        raise UserError(f"--cpus must be at least 1, not {options.cpus}")
    given = {name: value for name, value in vars(options).items() if name not in _NOT_ASSESSED}
    found = assess(options.source, contexts(options.gpus, options.cpus), **given)
    for name, text in (("error", "error"), ("error5", "top-5 error")):
        if name in found:
            print(f"{text} {found[name]:.2f} %")
    print(f"loss {found['loss']:.4f}")


_NOT_ASSESSED = ("action", "source", "gpus", "cpus")


def pack(options) -> None:
    from gluon_resnetv2.imagenet import pack

    packed = pack(
        options.source, options.output, resize=options.resize, leave_out=options.leave_out
    )
    left_out = f", {len(packed.left_out)} left out" if packed.left_out else ""
    print(f"{packed.path}: {packed.images} images of {len(packed.classes)} classes{left_out}")


def _colour(text: str) -> list[float]:
    values = [float(value) for value in text.split(",")]
    if not all(0 <= value <= 255 for value in values):
        raise ValueError
    return values


_colour.__name__ = "R,G,B of 0 to 255"  # argparse names it in its message


def convert(options) -> None:
    from gluon_resnetv2.interop import convert

    if options.image_size is not None and not 1 <= options.image_size <= IMAGE_SIZE_MAX:
        raise UserError(f"--image-size must be 1 to {IMAGE_SIZE_MAX}, not {options.image_size}")
    if options.layout and (options.image_size or options.classes or options.mean):
        raise UserError("--image-size, --classes and --mean are of an export; not with --to")
    classes = None if options.classes is None else _class_names(options.classes)
    source = convert.read(
        options.source,
        options.source_layout,
        report=print,
        key=options.weights,
        classes=len(classes or ()),
    )
    print(cli.printable(str(source)), flush=True)
    if options.layout:
        convert.to_layout(source, options.output, options.layout)
        print(f"wrote {options.output}")
        return
    artifact = convert.to_export(
        source,
        options.output,
        image_size=options.image_size,
        classes=classes,
        mean=options.mean,
        report=print,
    )
    print(f"exported {artifact.name} to {artifact.folder}")
    about = artifact.manifest["source"]
    if "difference" in about:
        print(f"{about['package']}'s own network has its logits, to {about['difference']:.1e}")
    elif source.layout.package:
        print(f"{source.layout.package} can't be imported here, so its logits were not compared")


def verify(options) -> int:
    from gluon_resnetv2.deploy.artifact import load
    from gluon_resnetv2.deploy.verify import report
    from gluon_resnetv2.training.stop import termination_as_interrupt

    artifact = load(options.export)
    with termination_as_interrupt():  # or what runs beside would go on
        return 0 if report(artifact, options.shape, options.engine) else 1


def predict(options) -> int:
    from gluon_resnetv2.deploy.artifact import load
    from gluon_resnetv2.deploy.predictor import Predictor

    predictor = Predictor(load(options.export), engine=options.engine)
    predictor.preparation()  # without which each image would complain
    status = 0
    for path in options.images:
        try:
            (classes,) = predictor.top(predictor.read(path)[None])
        except UserError as error:  # the others are not to blame
            cli.complain(error)
            status = cli.MISTAKE
            continue
        print(path)
        for name, probability in classes:
            print(f"  {100 * probability:6.2f} %  {cli.printable(name)}")
    return status


def train(options) -> int:
    from gluon_resnetv2.training.main import train

    given = {name: value for name, value in vars(options).items() if name != "action"}
    return train(*training_options.read_options(given), given["recipe"])


def serve(options) -> int:
    return server.main(options)


def profile(options) -> int:
    from gluon_resnetv2.profiling import main

    return main.main(options)


def study(options) -> int:
    from gluon_resnetv2.study import main

    return main.main(options)


def _class_names(path: str) -> list[str]:
    try:
        names = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text in UTF-8"
        raise UserError(f"{path}: {reason}") from None
    for line, name in enumerate(names or [""], start=1):
        if not name.strip():
            raise UserError(f"{path} has no name in line {line}; it needs one for each class")
    return names


def main() -> int:
    parser = cli.Parser(prog="python -m gluon_resnetv2", description="ResNet v2 on MXNet Gluon")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(action, help):
        options = verbs.add_parser(action.__name__, help=help, description=help)
        options.set_defaults(action=action)
        return options

    verb(doctor, "what works on this machine, and each known hazard's state")
    verb(models, "the paper's networks, with their size, cost and reported error")
    verb(recipes, "recipes with a name: their command, source, cost and expected error")
    options = verb(train, "train a network, export it, and verify the export")
    training_options.add_options(options)
    options = verb(launch, "train on several machines, or with several processes on this one")
    launch_module.add_options(options)
    options = verb(compare, "overlay the learning curves of runs, and tell what differs")
    options.add_argument("runs", nargs="+", metavar="run", help="a run's folder")
    options.add_argument("--output", default="compare.png", help="the picture")
    options = verb(evaluate, "test error of a run or an export")
    options.add_argument("source", help="folder of a run or an export")
    options.add_argument("--checkpoint", default="last", help="of a run: last, best, or a step")
    options.add_argument("--dataset", help="default: the run's")
    options.add_argument("--data-dir", help="folder of the data set; default: the run's")
    options.add_argument("--gpus", type=cli.numbers, help="as in 0,1,2,3")
    options.add_argument("--cpus", type=int, default=1, help="devices to simulate without --gpus")
    options.add_argument("--batch-size", type=int, default=64, help="images at once")
    options.add_argument("--size", type=int, help="ImageNet: of a crop; default: the run's")
    options.add_argument(
        "--crops", type=int, default=1, choices=(1, 10), help="ImageNet: crops of each image"
    )
    options.add_argument(
        "--scales",
        type=cli.numbers,
        default=(),
        help="ImageNet: whole images at these shorter sides",
    )
    options.add_argument(
        "--recalibrate",
        type=int,
        default=0,
        metavar="N",
        help="first measure batch normalisation's statistics over N training batches",
    )
    options.add_argument("--threads", type=int, help="that read images; default: one per CPU")
    options.add_argument(
        "--leave-out", action="store_true", help="ImageNet: go without images that can't be decoded"
    )
    options = verb(pack, "pack a folder of images, SOURCE/CLASS/*.JPEG, into RecordIO")
    options.add_argument("source", help="folder with a folder of images for each class")
    options.add_argument("output", help="train.rec or val.rec to be")
    options.add_argument("--resize", type=int, help="scale larger images to this shorter side")
    options.add_argument(
        "--leave-out", action="store_true", help="leave out images that can't be decoded"
    )
    options = verb(export, "write a run's network as a pair that MXNet serves")
    options.add_argument("run", help="a run's folder")
    options.add_argument("--output", help="the export's folder; default: RUN/export")
    options.add_argument("--checkpoint", default="last", help="last, best, or a step")
    options.add_argument("--pixels", action="store_true", help="the graph takes 0 to 255 itself")
    options.add_argument("--softmax", action="store_true", help="the graph gives probabilities")
    options.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="that it computes in; 16 and 8 bits are held against float32 on training images",
    )
    options.add_argument("--calibration-images", type=int, default=256, help="how many of them")
    options.add_argument("--data-dir", help="folder that has them; default: the run's")
    options.add_argument(
        "--fused", action="store_true", help="write the graph as MXNet's oneDNN backend fuses it"
    )
    options.add_argument("--to", choices=("onnx",), help="write NAME.onnx too")
    options.add_argument(
        "--for",
        dest="server",
        choices=("mlserver",),
        help="write what that server needs beside the pair",
    )
    options = verb(convert, "weights of other implementations to an export of ours, or back")
    add = options.add_argument
    add(
        "source", metavar="SRC", help="a .params, .pth, .safetensors, .h5 or .keras file; an export"
    )
    add("--from", dest="source_layout", choices=LAYOUTS, help="whose names; default: what fits")
    add("--to", dest="layout", choices=LAYOUTS, help="whose names; default: an export of ours")
    add("-o", "--output", required=True, metavar="OUT", help="a folder; with --to, a file")
    add("--image-size", type=int, help="of an export, in pixels; default: 32 or 224, by the stem")
    add(
        "--classes",
        metavar="FILE",
        help="names of an export's classes, one a line, a new classifier's if there is none",
    )
    add(
        "--mean",
        type=_colour,
        metavar="R,G,B",
        help="what an export subtracts from 0 to 255; default: the source's",
    )
    add("--weights", metavar="KEY", help="the set of a PyTorch file that has several, as EMA's")
    options = verb(verify, "compare an exported pair with the training graph in every runtime")
    options.add_argument(
        "export", help="folder of an export or run, or a pair's -symbol.json or .params"
    )
    options.add_argument(
        "--shape", type=cli.shape, help="C,H,W (or H,W,C) of an image, for a pair without manifest"
    )
    add_engine(options)
    options = verb(predict, "the likeliest five classes of image files")
    options.add_argument("export", help="folder of an export or run")
    options.add_argument("images", nargs="+", metavar="image", help="PNG, JPEG or other image file")
    add_engine(options)
    options = verb(serve, "answer requests over HTTP, by the Open Inference Protocol v2")
    server.add_options(options)
    options = verb(profile, "where the time of a training step or an inference goes")
    profiling_options.add_options(options)
    options = verb(study, "run the paper's tables and figures again, its numbers beside ours")
    study_options.add_options(options)
    chosen = parser.parse_args()
    return chosen.action(chosen) or 0


def command() -> None:
    """The program `resnetv2`."""
    cli.run(main)


if __name__ == "__main__":
    command()
