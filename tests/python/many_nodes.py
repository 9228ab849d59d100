"""Writes a model of many operators behind each other, which a larger batch makes as slow as is wanted.

usage: many_nodes.py OUTPUT.tflite

    x: FP32 [-1, 1024]  ->  y: FP32 [-1, 1024], the logistic function of it 500 times

`agent/tests/worker/models/many-nodes.tflite` was made with it.
"""

import pathlib
import sys

from ai_edge_litert import schema_py_generated as schema

import graph

NODES = 500
WIDTH = 1024


def model():
    made = graph.single_operator(
        "many nodes", schema.BuiltinOperator.LOGISTIC, schema.BuiltinOptions.NONE, None, (1, WIDTH), (1, WIDTH)
    )
    subgraph = made.subgraphs[0]
    first, last = subgraph.tensors
    between = []
    for _ in range(NODES - 1):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = [1, WIDTH], schema.TensorType.FLOAT32, 0
        between.append(tensor)
    subgraph.tensors = [first, *between, last]
    subgraph.operators = []
    for number in range(NODES):
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = 0, [number], [number + 1]
        subgraph.operators.append(node)
    subgraph.outputs = [NODES]
    for tensor in subgraph.tensors:
        tensor.shapeSignature = [-1, WIDTH]
    made.signatureDefs[0].outputs = [graph.tensor_map("y", NODES)]
    return made


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_bytes(graph.save(model()))
