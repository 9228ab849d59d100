"""A package (manifest.json, golden.json) as the checks of a client need it: names, questions, expected answers."""

import json

import numpy as np

NUMPY = {"FP32": np.float32, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "BOOL": np.bool_}


class Package:
    def __init__(self, directory):
        manifest = json.loads((directory / "manifest.json").read_text())
        golden = json.loads((directory / "golden.json").read_text())
        self.name, self.version = manifest["model"], manifest["version"]
        signature = manifest["signatures"][0]
        self.inputs, self.outputs = signature["inputs"], signature["outputs"]
        self.vectors = golden["vectors"]
        quantized = self.outputs[0]["datatype"] != "FP32"
        self.tolerance = 1 if quantized else 1e-5

    def question(self, vector):
        """The first input of a golden vector."""
        spec = self.inputs[0]
        return array(vector["inputs"][spec["name"]], spec)

    def expected(self, vector):
        spec = self.outputs[0]
        return array(vector["outputs"][spec["name"]], spec)

    def rows(self, count):
        """So many rows of the first golden vectors in one question, and their answer."""
        vectors = [self.vectors[number % len(self.vectors)] for number in range(count)]
        given = np.concatenate([self.question(vector) for vector in vectors])
        return given, np.concatenate([self.expected(vector) for vector in vectors])

    def check(self, answer, expected):
        assert answer is not None, f"no output {self.outputs[0]['name']}"
        assert answer.dtype == expected.dtype, f"{answer.dtype} instead of {expected.dtype}"
        assert answer.shape == expected.shape, f"{answer.shape} instead of {expected.shape}"
        wide = expected.astype(np.float64)
        difference = np.abs(answer.astype(np.float64) - wide).max()
        limit = self.tolerance * (max(1, np.abs(wide).max()) if self.tolerance < 1 else 1)
        assert difference <= limit, f"differs by {difference}"


def array(tensor, spec):
    return np.array(tensor["data"]).reshape(tensor["shape"]).astype(NUMPY[spec["datatype"]])
