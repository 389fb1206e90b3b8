"""`python -m gluon_resnetv2 VERB`."""

from __future__ import annotations

from gluon_resnetv2 import cli


def doctor(_options) -> int:
    from gluon_resnetv2 import doctor

    return doctor.main()


def models(_options) -> None:
    from gluon_resnetv2.paper import table

    print(table())


def export(options) -> None:
    from gluon_resnetv2.deploy.artifact import export_run

    artifact = export_run(options.run, options.output)
    print(f"exported {artifact.name} to {artifact.folder}")


def verify(options) -> int:
    from gluon_resnetv2.deploy.artifact import load
    from gluon_resnetv2.deploy.verify import report

    artifact = load(options.export)
    return 0 if report(artifact, options.shape) else 1


def predict(options) -> None:
    from gluon_resnetv2.deploy.artifact import load
    from gluon_resnetv2.deploy.predictor import Predictor

    predictor = Predictor(load(options.export))
    for path in options.images:
        (classes,) = predictor.top(predictor.read(path)[None])
        print(path)
        for name, probability in classes:
            print(f"  {100 * probability:6.2f} %  {name}")


def _shape(text: str) -> tuple:
    channels, height, width = (int(size) for size in text.split(","))
    return channels, height, width


_shape.__name__ = "C,H,W"  # argparse names it in its message


def main() -> int:
    parser = cli.Parser(prog="python -m gluon_resnetv2", description="ResNet v2 on MXNet Gluon")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(action, help):
        options = verbs.add_parser(action.__name__, help=help, description=help)
        options.set_defaults(action=action)
        return options

    verb(doctor, "what works on this machine, and each known hazard's state")
    verb(models, "the paper's networks, with their size, cost and reported error")
    options = verb(export, "write a run's network as a pair that MXNet serves")
    options.add_argument("run", help="a run's folder")
    options.add_argument("--output", help="the export's folder; default: RUN/export")
    options = verb(verify, "compare an exported pair with the training graph in every runtime")
    options.add_argument("export", help="folder of an export or run, or a -symbol.json")
    options.add_argument(
        "--shape", type=_shape, help="C,H,W of an image, for a pair without manifest"
    )
    options = verb(predict, "the likeliest five classes of image files")
    options.add_argument("export", help="folder of an export or run")
    options.add_argument("images", nargs="+", metavar="image", help="PNG, JPEG or other image file")
    chosen = parser.parse_args()
    return chosen.action(chosen) or 0


if __name__ == "__main__":
    cli.run(main)
