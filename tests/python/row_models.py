"""Writes two small models whose first dimension is free, for the tests of joined requests.

usage: row_models.py DIRECTORY

    lookup.tflite    ids: INT32 [-1]  ->  y: FP32 [-1, 3], a row of a table for each; fails on an id beyond its 4 rows
    reverse.tflite   x: FP32 [-1, 2]  ->  y: FP32 [-1, 2], the rows from last to first: none stands for itself

`agent/tests/worker/models/` has what it wrote.
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert import schema_py_generated as schema

import graph


def lookup():
    code, none = schema.BuiltinOperator.EMBEDDING_LOOKUP, schema.BuiltinOptions.NONE
    made = graph.single_operator("lookup", code, none, None, (1,), (1, 3))
    subgraph = made.subgraphs[0]
    ids, answer = subgraph.tensors
    ids.name, ids.type = "ids", schema.TensorType.INT32
    ids.shapeSignature, answer.shapeSignature = [-1], [-1, 3]
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    subgraph.operators[0].inputs = [0, graph.add_constant(made, "table", table)]
    made.signatureDefs[0].inputs = [graph.tensor_map("ids", 0)]
    return made


def reverse():
    code, kind = schema.BuiltinOperator.REVERSE_V2, schema.BuiltinOptions.ReverseV2Options
    made = graph.single_operator("reverse", code, kind, schema.ReverseV2OptionsT(), (1, 2), (1, 2))
    subgraph = made.subgraphs[0]
    for tensor in subgraph.tensors:
        tensor.shapeSignature = [-1, 2]
    axis = np.zeros(1, np.int32)
    subgraph.operators[0].inputs = [0, graph.add_constant(made, "axis", axis)]
    return made


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    (directory / "lookup.tflite").write_bytes(graph.save(lookup()))
    (directory / "reverse.tflite").write_bytes(graph.save(reverse()))
