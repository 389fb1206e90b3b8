"""Packaging. `pip install .[cpu]` or `.[cu112]`, never both: they own the same folder."""

import re
from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # MXNet for CPUs (oneDNN inside).
    "cpu": ["mxnet==1.9.1"],
    # MXNet for NVIDIA GPUs of compute capability 5.0 to 8.x, with the CUDA 11 libraries that its
    # wheel links to, so that the driver is all a machine needs.
    "cu112": [
        "mxnet-cu112==1.9.1",
        "nvidia-cublas-cu11==11.11.3.6",
        "nvidia-cuda-nvrtc-cu11==11.8.89",
        "nvidia-cuda-runtime-cu11==11.8.89",
        "nvidia-cudnn-cu11==8.9.6.50",
        "nvidia-cufft-cu11==10.9.0.58",
        "nvidia-curand-cu11==10.3.0.86",
        "nvidia-cusolver-cu11==11.4.1.48",
        "nvidia-nccl-cu11==2.21.5",
        "nvidia-nvtx-cu11==11.8.86",
    ],
    # The model zoo and detection pipelines that our exports load into.
    "gluoncv": ["gluoncv==0.10.5.post0"],
    # A current oneDNN, for `--engine native`: its library, and the headers to compile against.
    "native": ["onednn-cpu-gomp==2023.2.0", "onednn-devel-cpu-gomp==2023.2.0"],
    # The second engine for several workers. Its build imports MXNet: the README says how.
    "horovod": ["horovod==0.28.1"],
    # Exports for other runtimes than MXNet's, and the one that `verify` runs them in. onnx 1.19
    # dropped what MXNet's exporter imports.
    "onnx": ["onnx>=1.13,<1.19", "onnxruntime>=1.16"],
    # The server of KServe's model runtimes, with gRPC. uvloop 0.23 ends its worker processes.
    "mlserver": ["mlserver==1.7.1", "uvloop==0.21.0"],
    # What benchmarks/inference.py has beside MXNet.
    "benchmarks": ["onnx>=1.13,<1.19", "onnxruntime>=1.16", "openvino>=2024.6"],
    # What the tests need.
    "dev": [
        "pytest>=8",  # the runner
        "pytest-xdist>=3.5",  # runs them side by side
        "scikit-learn>=1.0",  # the source of our digits; brings SciPy, which enlarges them, too
        "ruff==0.17.6",  # the linter, pinned because each release formats a little differently
        "gluoncv==0.10.5.post0",  # the peer whose export `verify` must catch
        "tritonclient[grpc,http]>=2.42",  # a client of the Open Inference Protocol that is not ours
        "h5py>=3.8",  # Keras' files
        "selenium>=4.20",  # drives the browser that tries the page
        # The tutorial: a notebook of the script, run as its readers do.
        "ipykernel>=6.25",
        "jupytext>=1.15",
        "nbclient>=0.10",
        "pyparsing<3.3; python_version < '3.10'",  # newer ones warn in matplotlib for Python 3.9
    ],
    # Keras' files of weights, for `convert`.
    "keras": ["h5py>=3.8"],
    # What the tests hold our arithmetic, and converted weights, against.
    "oracle": [
        "torch==2.13.0; python_version >= '3.10'",  # the other framework
        "torchvision==0.28.0; python_version >= '3.10'",  # timm imports it
        "timm==1.0.31; python_version >= '3.10'",  # weights of its networks, and safetensors
        "keras>=3,<4",  # weights of its networks; runs on PyTorch
    ],
}

HERE = Path(__file__).parent

setup(
    name="gluon_resnetv2",
    version=re.search('__version__ = "(.*)"', (HERE / "gluon_resnetv2/__init__.py").read_text())[1],
    description="Identity Mappings in Deep Residual Networks (ResNet v2) for MXNet Gluon",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.13",  # numpy 1.x, which MXNet 1.9.1 needs, has no wheel for 3.13
    packages=find_packages(include=["gluon_resnetv2", "gluon_resnetv2.*"]),
    package_data={
        "gluon_resnetv2.data": ["digits.npz"],
        "gluon_resnetv2.deploy": ["page.html"],
        "gluon_resnetv2.native": ["trunk.cc"],
    },
    install_requires=[
        "numpy>=1.23,<2",  # MXNet 1.9.1 does not know numpy 2
        "httptools>=0.6.4",  # parses HTTP for uvicorn; before, CVE-2024-27982
        "matplotlib>=3.7",  # learning curves
        "pillow>=9.1",  # reads image files
        "prometheus-client>=0.20",  # the server's metrics
        # Routes the server's requests. We use neither its forms nor its files (before 0.49.1 their
        # ranges take minutes), as MLServer goes with none later than 0.46.
        "starlette>=0.40",
        "tensorboard>=2.15",  # the format of its event files; needs neither TensorFlow nor PyTorch
        "tqdm>=4.60",  # the progress bar
        # The server's connections and signals. We override methods that it does not document.
        "uvicorn>=0.30,<0.55",
        'uvloop>=0.17; sys_platform != "win32"',  # its event loop: a request costs a tenth less
    ],
    extras_require=EXTRAS,
)
