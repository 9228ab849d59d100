"""Writes small models of kinds that samples are not: strings, outputs of any shape, several signatures, operators
that no built-in kernel has.

usage: odd_models.py DIRECTORY

    words.tflite    words BYTES [-1], picks INT32 [-1]  ->  picked BYTES [-1], listed BYTES [-1, 1]
    reshaped.tflite x FP32 [6], shape INT32 [-1]        ->  y FP32, of the shape that was asked for
    found.tflite    flags BOOL [-1]                     ->  places INT64 [-1, 1] of those that are true
    two.tflite      signatures negate (x -> y) and double (x -> y), FP32 [1, 4]
    custom.tflite, flex.tflite, newer.tflite            an operator of somebody else's, of TensorFlow, of a later TFLite
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert import schema_py_generated as schema

import graph

Op = schema.BuiltinOperator
Options = schema.BuiltinOptions
Type = schema.TensorType


class Model:
    """A model of one graph for each signature."""

    def __init__(self, description):
        self.made = schema.ModelT()
        self.made.version = 3
        self.made.description = description
        self.made.buffers = [schema.BufferT()]
        self.made.operatorCodes, self.made.subgraphs, self.made.signatureDefs = [], [], []

    def graph(self):
        self.subgraph = schema.SubGraphT()
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.made.subgraphs.append(self.subgraph)
        return self

    def tensor(self, name, kind, shape, data=None):
        """A dimension of -1 is free: the file says 1 and, in the signature, -1."""
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, kind, 0
        tensor.shape = [max(d, 1) for d in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.made.buffers.append(buffer)
            tensor.buffer = len(self.made.buffers) - 1
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def operator(self, builtin, inputs, outputs, options_type=0, options=None, version=1, custom=None):
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version, code.customCode = version, custom
        self.made.operatorCodes.append(code)
        node = schema.OperatorT()
        node.opcodeIndex = len(self.made.operatorCodes) - 1
        node.inputs, node.outputs = inputs, outputs
        node.builtinOptionsType, node.builtinOptions = options_type, options
        self.subgraph.operators.append(node)

    def signature(self, inputs, outputs, name="serving_default"):
        self.subgraph.inputs, self.subgraph.outputs = inputs, outputs
        signature = schema.SignatureDefT()
        signature.signatureKey = name
        signature.subgraphIndex = len(self.made.subgraphs) - 1
        called = lambda index: graph.tensor_map(self.subgraph.tensors[index].name, index)
        signature.inputs, signature.outputs = [called(i) for i in inputs], [called(i) for i in outputs]
        self.made.signatureDefs.append(signature)
        return self

    def save(self):
        return graph.save(self.made)


def words():
    model = Model("picks words out of words").graph()
    given = model.tensor("words", Type.STRING, [-1])
    picks = model.tensor("picks", Type.INT32, [-1])
    picked = model.tensor("picked", Type.STRING, [-1])
    listed = model.tensor("listed", Type.STRING, [-1, 1])
    shape = model.tensor("column", Type.INT32, [2], np.array([-1, 1], np.int32))
    gather, column = schema.GatherOptionsT(), schema.ReshapeOptionsT()
    column.newShape = [-1, 1]
    model.operator(Op.GATHER, [given, picks], [picked], Options.GatherOptions, gather)
    model.operator(Op.RESHAPE, [given, shape], [listed], Options.ReshapeOptions, column)
    return model.signature([given, picks], [picked, listed])


def reshaped():
    model = Model("the shape of the output is an input").graph()
    x = model.tensor("x", Type.FLOAT32, [6])
    shape = model.tensor("shape", Type.INT32, [-1])
    y = model.tensor("y", Type.FLOAT32, [])
    model.operator(Op.RESHAPE, [x, shape], [y], Options.ReshapeOptions, schema.ReshapeOptionsT())
    return model.signature([x, shape], [y])


def found():
    model = Model("how many places there are depends on the values").graph()
    flags = model.tensor("flags", Type.BOOL, [-1])
    places = model.tensor("places", Type.INT64, [-1, 1])
    model.operator(Op.WHERE, [flags], [places], Options.WhereOptions, schema.WhereOptionsT())
    return model.signature([flags], [places])


def two():
    model = Model("two functions")
    for name, builtin, options_type, options in (
        ("negate", Op.NEG, Options.NegOptions, schema.NegOptionsT()),
        ("double", Op.ADD, Options.AddOptions, schema.AddOptionsT()),
    ):
        model.graph()
        x, y = (model.tensor(tensor, Type.FLOAT32, [1, 4]) for tensor in "xy")
        model.operator(builtin, [x, x] if name == "double" else [x], [y], options_type, options)
        model.signature([x], [y], name)
    return model


def one_operator(description, **operator):
    model = Model(description).graph()
    x, y = (model.tensor(tensor, Type.FLOAT32, [1, 4]) for tensor in "xy")
    model.operator(inputs=[x], outputs=[y], **operator)
    return model.signature([x], [y])


def later():
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return one_operator(
        "later", builtin=Op.SOFTMAX, version=99, options_type=Options.SoftmaxOptions, options=options
    )


MODELS = {
    "words": words,
    "reshaped": reshaped,
    "found": found,
    "two": two,
    "custom": lambda: one_operator("custom", builtin=Op.CUSTOM, custom="SharpenScan"),
    "flex": lambda: one_operator("flex", builtin=Op.CUSTOM, custom="FlexErf"),
    "newer": later,
}


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in MODELS.items():
        (directory / f"{name}.tflite").write_bytes(make().save())
