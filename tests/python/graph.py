"""Reads and writes .tflite files as objects, field by field, without TensorFlow.

The classes of the schema come with ai-edge-litert. What `save` writes is always a well-formed flatbuffer,
however senseless its fields are.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def load(data):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(data), 0))


def save(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def single_operator(name, operator, options_type, options, input_shape, output_shape):
    """A float32 model of one operator with one input `x` and one output `y`."""
    model = schema.ModelT()
    model.version = 3
    model.description = name
    model.buffers = [schema.BufferT()]
    code = schema.OperatorCodeT()
    code.builtinCode = operator
    code.deprecatedBuiltinCode = min(operator, 127)
    code.version = 1
    model.operatorCodes = [code]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = []
    for tensor_name, shape in (("x", input_shape), ("y", output_shape)):
        tensor = schema.TensorT()
        tensor.name = tensor_name
        tensor.shape = list(shape)
        tensor.type = schema.TensorType.FLOAT32
        tensor.buffer = 0
        graph.tensors.append(tensor)
    node = schema.OperatorT()
    node.opcodeIndex = 0
    node.inputs, node.outputs = [0], [1]
    node.builtinOptionsType, node.builtinOptions = options_type, options
    graph.operators = [node]
    graph.inputs, graph.outputs = [0], [1]
    model.subgraphs = [graph]
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.subgraphIndex = 0
    signature.inputs, signature.outputs = [tensor_map("x", 0)], [tensor_map("y", 1)]
    model.signatureDefs = [signature]
    return model


def add_constant(model, name, values):
    """Adds a tensor that the file holds, of float32 or int32; returns its number."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.shape = name, list(values.shape)
    tensor.type = {"f": schema.TensorType.FLOAT32, "i": schema.TensorType.INT32}[values.dtype.kind]
    tensor.buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1


def tensor_map(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def ints(values):
    """A vector field as a list of plain integers; an absent one is empty."""
    return [] if values is None else [int(v) for v in np.asarray(values).ravel()]
