"""What a team writes by hand: FastAPI around the interpreter, JSON through pydantic, binary bodies read by hand.

usage: fastapi_server.py PORT NAME=MODEL.tflite …
"""

import json
import sys
import threading

import fastapi
import numpy
import pydantic
import uvicorn
from ai_edge_litert.interpreter import Interpreter


class Model:
    def __init__(self, file):
        self.interpreter = Interpreter(file, num_threads=1)
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()
        self.lock = threading.Lock()

    def run(self, values):
        with self.lock:
            self.interpreter.set_tensor(self.input["index"], values.reshape(self.input["shape"]))
            self.interpreter.invoke()
            return self.interpreter.get_tensor(self.output["index"])


class Tensor(pydantic.BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Question(pydantic.BaseModel):
    inputs: list[Tensor]


app = fastapi.FastAPI()
models = {}


@app.get("/v2/health/ready")
def ready():
    return {"ready": True}


def answer(name, values, **more):
    output = {"name": "output", "shape": list(values.shape), "datatype": "FP32", **more}
    return {"model_name": name, "outputs": [output]}


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: fastapi.Request):
    body = await request.body()
    model = models[name]
    length = request.headers.get("inference-header-content-length")
    if length is None:
        question = Question.model_validate_json(body)
        values = model.run(numpy.array(question.inputs[0].data, dtype=numpy.float32))
        return fastapi.responses.JSONResponse(answer(name, values, data=values.ravel().tolist()))
    values = model.run(numpy.frombuffer(body, dtype="<f4", offset=int(length)))
    header = json.dumps(answer(name, values, parameters={"binary_data_size": values.nbytes})).encode()
    return fastapi.Response(
        header + values.tobytes(),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, file = argument.split("=", 1)
        models[name] = Model(file)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
