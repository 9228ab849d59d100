"""What Google's own interpreter answers: the reference that the agent's answers are compared with.

usage: reference.py OUTPUT KERNELS[,KERNELS…] MODEL.tflite=SHAPE[,SHAPE…] …

Each model is run on inputs drawn from a fixed seed, on a fresh interpreter per shape, once with each of the KERNELS
(builtin, xnnpack). SHAPE is that of the first input, such as 1x1280; without one the model's own
is used. Several shapes for one model may be given. OUTPUT gets one JSON document:

    [{"model": path, "kernels": "builtin" | "xnnpack",
      "inputs":  [{"datatype": "FP32", "shape": [1, 30], "data": "<hex of the little-endian bytes>"}],
      "outputs": [same], …]

Tensors stand in the order of the default signature, as in the file.
"""

import json
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

SEED = 20251125
KERNELS = {
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    # The resolver with default delegates applies XNNPACK where it can, as a user of the package gets it.
    "xnnpack": OpResolverType.AUTO,
}
DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
}


def tensor(array):
    return {
        "datatype": DATATYPES[array.dtype.name],
        "shape": list(array.shape),
        "data": np.ascontiguousarray(array).tobytes().hex(),
    }


def draw(generator, shape, dtype):
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(bool)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return generator.uniform(-1, 1, shape).astype(dtype)


def run(path, kernels, shape):
    interpreter = Interpreter(model_path=path, experimental_op_resolver_type=KERNELS[kernels], num_threads=1)
    inputs = interpreter.get_input_details()
    if shape:
        interpreter.resize_tensor_input(inputs[0]["index"], shape)
    interpreter.allocate_tensors()
    generator = np.random.default_rng(SEED)
    drawn = []
    for detail in interpreter.get_input_details():
        values = draw(generator, tuple(detail["shape"]), np.dtype(detail["dtype"]))
        interpreter.set_tensor(detail["index"], values)
        drawn.append(values)
    interpreter.invoke()
    answers = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    return {
        "model": path,
        "kernels": kernels,
        "inputs": [tensor(values) for values in drawn],
        "outputs": [tensor(np.asarray(answer)) for answer in answers],
    }


def main(output, kernels, *models):
    cases = []
    for argument in models:
        path, _, shapes = argument.partition("=")
        for text in shapes.split(",") if shapes else [""]:
            shape = [int(part) for part in text.split("x")] if text else None
            cases.extend(run(path, each, shape) for each in kernels.split(","))
    with open(output, "w", encoding="utf-8") as file:
        json.dump(cases, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
