"""Asks over gRPC with planted patterns, right and wrong.

planted.py SOCKET TENSOR TEXT: TENSOR is a file of 64 little-endian 32-bit numbers.
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

socket, tensor, text = sys.argv[1:4]
values = np.fromfile(tensor, dtype="<f4")
client = triton.InferenceServerClient(f"unix:{socket}")


def ask(model, name, shape, **more):
    given = triton.InferInput(name, list(shape), "FP32")
    given.set_data_from_numpy(values.reshape(shape))
    return client.infer(model, [given], client_timeout=30, **more)


ask("digits", "image", (1, 8, 8, 1), request_id=text)
for model, name, shape in [(text, "image", (1, 8, 8, 1)), ("digits", text, (1, 8, 8, 1)), ("digits", "image", (64,))]:
    try:
        ask(model, name, shape)
    except InferenceServerException:
        continue
    sys.exit(f"{model} {name} {shape} was answered")
