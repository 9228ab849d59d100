"""Lays the three models of the benchmark into a directory.

usage: bench_models.py DIRECTORY

    tiny-1.0.0.tflite   okay_nabu of pyopen-wakeword: microseconds; 6 kB in, one number out
    1ms-1.0.0.tflite    its embedding model: about a millisecond; 10 kB in
    3mib-1.0.0.tflite   an average pool, made here: a 512x512 RGB picture of float32 (3 MiB) in, 48 kB out
"""

import pathlib
import sys

from ai_edge_litert import schema_py_generated as schema

import graph
from public_models import DIRECTORY


def average_pool():
    options = schema.Pool2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideW = options.strideH = 8
    options.filterWidth = options.filterHeight = 8
    return graph.single_operator(
        "average pool of a picture",
        schema.BuiltinOperator.AVERAGE_POOL_2D,
        schema.BuiltinOptions.Pool2DOptions,
        options,
        (1, 512, 512, 3),
        (1, 64, 64, 3),
    )


def main(directory):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tiny-1.0.0.tflite").write_bytes((DIRECTORY / "okay_nabu.tflite").read_bytes())
    (directory / "1ms-1.0.0.tflite").write_bytes((DIRECTORY / "embedding_model.tflite").read_bytes())
    (directory / "3mib-1.0.0.tflite").write_bytes(graph.save(average_pool()))


if __name__ == "__main__":
    main(*sys.argv[1:])
