"""A TFLite model inside Triton's Python backend: the model file lies beside this one, as `model.tflite`."""

import pathlib

import triton_python_backend_utils as backend
from ai_edge_litert.interpreter import Interpreter


class TritonPythonModel:
    def initialize(self, args):
        directory = pathlib.Path(args["model_repository"]) / args["model_version"]
        self.interpreter = Interpreter(str(directory / "model.tflite"), num_threads=1)
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()

    def execute(self, requests):
        responses = []
        for request in requests:
            (tensor,) = request.inputs()
            self.interpreter.set_tensor(self.input["index"], tensor.as_numpy())
            self.interpreter.invoke()
            answer = self.interpreter.get_tensor(self.output["index"])
            outputs = [backend.Tensor("output", answer)]
            responses.append(backend.InferenceResponse(output_tensors=outputs))
        return responses
