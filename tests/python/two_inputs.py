"""Writes a model with two inputs and two outputs, for requests that mix the forms of their tensors.

usage: two_inputs.py OUTPUT.tflite

    x, y: FP32 [1, 3]  ->  sum, product: FP32 [1, 3]
"""

import pathlib
import sys

from ai_edge_litert import schema_py_generated as schema

import graph


def model():
    made = graph.single_operator(
        "sum and product",
        schema.BuiltinOperator.ADD,
        schema.BuiltinOptions.AddOptions,
        schema.AddOptionsT(),
        (1, 3),
        (1, 3),
    )
    subgraph = made.subgraphs[0]
    while len(subgraph.tensors) < 4:
        tensor = schema.TensorT()
        tensor.shape = [1, 3]
        tensor.type = schema.TensorType.FLOAT32
        tensor.buffer = 0
        subgraph.tensors.append(tensor)
    for tensor, name in zip(subgraph.tensors, ("x", "y", "sum", "product")):
        tensor.name = name
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MUL
    code.version = 1
    made.operatorCodes.append(code)
    product = schema.OperatorT()
    product.opcodeIndex = 1
    product.builtinOptionsType, product.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    subgraph.operators.append(product)
    for operator, output in zip(subgraph.operators, (2, 3)):
        operator.inputs, operator.outputs = [0, 1], [output]
    subgraph.inputs, subgraph.outputs = [0, 1], [2, 3]
    signature = made.signatureDefs[0]
    signature.inputs = [graph.tensor_map("x", 0), graph.tensor_map("y", 1)]
    signature.outputs = [graph.tensor_map("sum", 2), graph.tensor_map("product", 3)]
    return made


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_bytes(graph.save(model()))
