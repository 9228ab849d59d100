"""Lays the models of the benchmark into a directory.

usage: bench_models.py DIRECTORY

    tiny-1.0.0.tflite   okay_nabu of pyopen-wakeword: microseconds; 6 kB in, one number out
    1ms-1.0.0.tflite    its embedding model: about a millisecond; 10 kB in
    3mib-1.0.0.tflite   an average pool, made here: a 512x512 RGB picture of float32 (3 MiB) in, 48 kB out
    wide-1.0.0.tflite   a dense layer, made here: any number of rows of 4 kB in and out, and weights of 4 MiB,
                        which are read once for all rows of an invoke
"""

import pathlib
import sys

import numpy as np
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


def dense_layer(width=1024):
    made = graph.single_operator(
        "a wide dense layer",
        schema.BuiltinOperator.FULLY_CONNECTED,
        schema.BuiltinOptions.FullyConnectedOptions,
        schema.FullyConnectedOptionsT(),
        (1, width),
        (1, width),
    )
    subgraph = made.subgraphs[0]
    for tensor in subgraph.tensors:
        tensor.shapeSignature = [-1, width]
    weights = np.random.default_rng(1).normal(0, width**-0.5, (width, width)).astype(np.float32)
    bias = np.zeros(width, np.float32)
    added = [graph.add_constant(made, "weights", weights), graph.add_constant(made, "bias", bias)]
    subgraph.operators[0].inputs = [0, *added]
    return made


def main(directory):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tiny-1.0.0.tflite").write_bytes((DIRECTORY / "okay_nabu.tflite").read_bytes())
    (directory / "1ms-1.0.0.tflite").write_bytes((DIRECTORY / "embedding_model.tflite").read_bytes())
    (directory / "wide-1.0.0.tflite").write_bytes(graph.save(dense_layer()))
    (directory / "3mib-1.0.0.tflite").write_bytes(graph.save(average_pool()))


if __name__ == "__main__":
    main(*sys.argv[1:])
