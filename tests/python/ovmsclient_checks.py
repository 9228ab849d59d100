"""Asks a running agent what a user of TensorFlow Serving would: with ovmsclient over REST and gRPC, and with plain
requests where that client has no words for it.

usage: ovmsclient_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --socket PATH --two-inputs MODEL
                            --package DIRECTORY [--package …]

Each package directory is a model that the agent serves; MODEL is one with the inputs x and y and the outputs sum and
product; words and two (odd_models.py) are served too. Prints a line per check and exits with 1 if one failed.
"""

import argparse
import base64
import pathlib
import sys
import traceback

import grpc
import numpy as np
import requests
from ovmsclient.tfs_compat.base import errors
from ovmsclient.tfs_compat.grpc.serving_client import GrpcClient
from ovmsclient.tfs_compat.http.serving_client import HttpClient
from ovmsclient.tfs_compat.protos.tensorflow.core.framework.types_pb2 import DataType
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from packages import Package

SECONDS = 30
DTYPE = {"FP32": "DT_FLOAT", "INT8": "DT_INT8", "BYTES": "DT_STRING", "INT32": "DT_INT32"}
X = np.array([[1.5, -2.0, 0.25]], np.float32)
Y = np.array([[4.0, 0.5, 8.0]], np.float32)


class OverTls(requests.adapters.HTTPAdapter):
    """This client asks for http:// whatever it is told about keys."""

    def send(self, request, **more):
        request.url = request.url.replace("http://", "https://", 1)
        return super().send(request, **{**more, "verify": self.ca})


def session(options):
    made = requests.Session()
    adapter = OverTls()
    adapter.ca = options.ca
    made.mount("http://", adapter)
    made.headers["Authorization"] = f"Bearer {options.token}"
    return made


def clients(options):
    """This client's own ways in, and the same over TLS, for which it cannot be told a token."""
    trusted = grpc.ssl_channel_credentials(pathlib.Path(options.ca).read_bytes())
    token = grpc.access_token_call_credentials(options.token)
    channel = grpc.secure_channel(options.url, grpc.composite_channel_credentials(trusted, token))
    stubs = (
        prediction_service_pb2_grpc.PredictionServiceStub(channel),
        model_service_pb2_grpc.ModelServiceStub(channel),
    )
    local = grpc.insecure_channel(f"unix:{options.socket}")
    local_stubs = (
        prediction_service_pb2_grpc.PredictionServiceStub(local),
        model_service_pb2_grpc.ModelServiceStub(local),
    )
    return {
        "rest": HttpClient(options.url, session(options)),
        "grpc, tls": GrpcClient(channel, *stubs),
        "grpc, unix": GrpcClient(local, *local_stubs),
    }


def refused(kind, call):
    try:
        call()
    except kind as error:
        assert str(error), "a refusal without a reason"
        return str(error)
    raise AssertionError(f"was answered, not refused with {kind.__name__}")


CHECKS, REST, GRPC = [], [], []


def check_in(checks):
    def check(function):
        checks.append(function)
        return function

    return check


@check_in(CHECKS)
def every_golden_vector_is_answered(client, packages, _options):
    for package in packages:
        name = package.inputs[0]["name"]
        questions = [(package.question(v), package.expected(v)) for v in package.vectors]
        for values, expected in [*questions, package.rows(30)]:
            for version in (0, 1):
                answer = client.predict({name: values}, package.name, version, timeout=SECONDS)
                package.check(answer.astype(expected.dtype), expected)


@check_in(CHECKS)
def two_inputs_are_told_apart_by_name(client, _packages, options):
    answer = client.predict({"y": Y, "x": X}, options.two_inputs, timeout=SECONDS)
    assert np.array_equal(answer["sum"], X + Y) and np.array_equal(answer["product"], X * Y), answer


@check_in(CHECKS)
def words_go_and_come(client, _packages, _options):
    given = {"words": np.array(["zero", "", "two"]), "picks": np.array([2, 0, 2], np.int32)}
    picked = client.predict(given, "words", timeout=SECONDS)["picked"]
    assert [w if isinstance(w, str) else w.decode() for w in picked] == ["two", "zero", "two"], picked


@check_in(CHECKS)
def status_is_available(client, packages, _options):
    for package in packages:
        status = client.get_model_status(package.name, timeout=SECONDS)
        assert status == {1: {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}, status
        assert client.get_model_status(package.name, 1, timeout=SECONDS) == status
    refused(errors.ModelNotFoundError, lambda: client.get_model_status("no-such-model", timeout=SECONDS))
    refused(errors.ModelNotFoundError, lambda: client.get_model_status(packages[0].name, 7, timeout=SECONDS))


@check_in(CHECKS)
def wrong_requests_are_refused_by_name(client, packages, options):
    package = packages[0]
    name = package.inputs[0]["name"]
    values = package.question(package.vectors[0])
    predict = lambda inputs, model=package.name, version=0: lambda: client.predict(inputs, model, version, timeout=SECONDS)
    wrong = lambda call: refused(errors.InvalidInputError, call)
    assert "nonsense" in wrong(predict({"nonsense": values}))
    assert name in wrong(predict({name: values[:, :3]}))
    assert "y" in wrong(predict({"x": X}, options.two_inputs))
    refused(errors.ModelNotFoundError, predict({name: values}, "no-such-model"))
    refused(errors.ModelNotFoundError, predict({name: values}, package.name, 7))


@check_in(GRPC)
def metadata_is_that_of_the_manifest(client, packages, _options):
    for package in packages:
        metadata = client.get_model_metadata(package.name, timeout=SECONDS)
        assert metadata["model_version"] == 1, metadata
        for kind, specs in (("inputs", package.inputs), ("outputs", package.outputs)):
            expected = {s["name"]: {"shape": s["shape"], "dtype": DTYPE[s["datatype"]]} for s in specs}
            assert metadata[kind] == expected, metadata
    refused(errors.ModelNotFoundError, lambda: client.get_model_metadata("no-such-model", timeout=SECONDS))


@check_in(GRPC)
def tensors_are_understood_in_each_of_their_forms(client, packages, options):
    def predict(content=None, values=(), outputs=(), signature="", shape=(1, 3), label=""):
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = options.two_inputs, signature
        if label:
            request.model_spec.version_label = label
        for name in ("x", "y"):
            tensor = request.inputs[name]
            tensor.dtype = DataType.DT_FLOAT
            for size in shape:
                tensor.tensor_shape.dim.add(size=size)
            if content is not None:
                tensor.tensor_content = content
            tensor.float_val.extend(values)
        return client.prediction_service_stub.Predict(request, SECONDS)

    def refusal(code, *arguments, **more):
        try:
            predict(*arguments, **more)
        except grpc.RpcError as error:
            assert error.code() == code and error.details(), error
            return error.details()
        raise AssertionError(f"was answered, not refused with {code}")

    product = lambda response: np.frombuffer(response.outputs["product"].tensor_content, np.float32)
    raw = predict(X.tobytes())
    assert np.array_equal(product(raw), (X * X)[0])
    assert (raw.model_spec.name, raw.model_spec.version.value) == (options.two_inputs, 1), raw
    assert [d.size for d in raw.outputs["sum"].tensor_shape.dim] == [1, 3], raw
    # The last value is repeated, and no value is zero.
    assert np.array_equal(product(predict(values=[2, 3])), [4, 9, 9])
    assert np.array_equal(product(predict(values=[3])), [9, 9, 9])
    assert np.array_equal(product(predict()), [0, 0, 0])
    only = predict(values=[1], outputs=["sum"], signature="serving_default")
    assert set(only.outputs) == {"sum"}, only
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    assert "4 values" in refusal(invalid, values=[1, 2, 3, 4])
    assert "11 bytes" in refusal(invalid, X.tobytes()[:-1])
    assert "nonsense" in refusal(invalid, values=[1], outputs=["nonsense"])
    assert "nonsense" in refusal(invalid, values=[1], signature="nonsense")
    assert "[1, 4]" in refusal(invalid, values=[1], shape=(1, 4))
    assert "label" in refusal(missing, values=[1], label="stable")


@check_in(GRPC)
def reloading_is_the_fleets_affair(client, _packages, _options):
    try:
        client.model_service_stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), SECONDS)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED and "keys" in error.details(), error
    else:
        raise AssertionError("was done")


def post(client, path, body):
    answer = client.session.post(f"http://{client.url}/v1/models/{path}", json=body, timeout=SECONDS)
    return answer.status_code, answer.json()


@check_in(REST)
def rest_metadata_is_that_of_the_manifest(client, packages, _options):
    for package in packages:
        for path in ("", "/versions/1", f"/versions/{package.version}"):
            answer = client.session.get(f"http://{client.url}/v1/models/{package.name}{path}/metadata").json()
            assert answer["model_spec"] == {"name": package.name, "signature_name": "", "version": "1"}, answer
            signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
            for kind, specs in (("inputs", package.inputs), ("outputs", package.outputs)):
                found = {
                    name: (t["dtype"], [int(d["size"]) for d in t["tensor_shape"]["dim"]])
                    for name, t in signature[kind].items()
                }
                assert found == {s["name"]: (DTYPE[s["datatype"]], s["shape"]) for s in specs}, found


@check_in(REST)
def rows_are_answered_row_by_row(client, packages, options):
    for package in packages:
        given, expected = package.rows(4)
        name = package.inputs[0]["name"]
        rows = given.tolist()
        for instances in (rows, [{name: row} for row in rows]):
            status, answer = post(client, f"{package.name}:predict", {"instances": instances})
            assert status == 200, answer
            package.check(np.array(answer["predictions"], expected.dtype), expected)
    row = {"x": X[0].tolist(), "y": Y[0].tolist()}
    status, answer = post(client, f"{options.two_inputs}:predict", {"instances": [row], "signature_name": "serving_default"})
    expected = {"sum": (X + Y)[0].tolist(), "product": (X * Y)[0].tolist()}
    assert (status, answer) == (200, {"predictions": [expected]}), answer


@check_in(REST)
def columns_need_no_name_where_there_is_one_input(client, packages, options):
    package = packages[0]
    values, expected = package.question(package.vectors[0]), package.expected(package.vectors[0])
    status, answer = post(client, f"{package.name}/versions/1:predict", {"inputs": values.tolist()})
    assert status == 200, answer
    package.check(np.array(answer["outputs"], np.float32), expected)
    status, answer = post(client, f"{options.two_inputs}:predict", {"inputs": X.tolist()})
    assert status == 400 and "\"y\"" in answer["error"], answer


@check_in(REST)
def bytes_may_come_in_base64(client, _packages, _options):
    encoded = {"b64": base64.b64encode("zwölf".encode()).decode()}
    body = {"inputs": {"words": ["zero", encoded], "picks": [1, 0]}}
    status, answer = post(client, "words:predict", body)
    assert status == 200 and answer["outputs"]["picked"] == ["zwölf", "zero"], answer
    assert answer["outputs"]["listed"] == [["zero"], ["zwölf"]], answer
    body = {"inputs": {"words": [{"b64": "?"}], "picks": [0]}}
    status, answer = post(client, "words:predict", body)
    assert status == 400 and "base64" in answer["error"], answer


@check_in(REST)
def signatures_are_chosen_by_name(client, _packages, _options):
    values = [[1.0, -2.0, 3.0, 0.5]]
    for signature, factor in (("negate", -1), ("double", 2)):
        status, answer = post(client, "two:predict", {"signature_name": signature, "instances": values})
        assert status == 200, answer
        assert answer["predictions"] == (factor * np.array(values)).tolist(), answer
    status, answer = post(client, "two:predict", {"signature_name": "serving_default", "instances": values})
    assert status == 200, answer
    status, answer = post(client, "two:predict", {"signature_name": "nonsense", "instances": values})
    assert status == 400 and "negate" in answer["error"], answer


@check_in(REST)
def scores_are_classes_and_numbers_are_values(client, packages, _options):
    digits = next(p for p in packages if p.name == "digits")
    given, expected = digits.rows(3)
    examples = [{"image": row.ravel().tolist()} for row in given]
    status, answer = post(client, "digits:classify", {"examples": examples})
    assert status == 200, answer
    labels = [[label for label, _ in row] for row in answer["results"]]
    assert labels == [[str(number) for number in range(10)]] * 3, labels
    digits.check(np.array([[score for _, score in row] for row in answer["results"]], np.float32), expected)
    status, answer = post(client, "digits:regress", {"examples": examples})
    assert status == 400 and "probabilities" in answer["error"], answer
    cancer = next(p for p in packages if p.name == "breast-cancer")
    given, expected = cancer.question(cancer.vectors[0]), cancer.expected(cancer.vectors[0])
    examples = [{cancer.inputs[0]["name"]: row.tolist()} for row in given]
    status, answer = post(client, "breast-cancer:regress", {"examples": examples})
    if expected.shape[-1] == 1:
        assert status == 200, answer
        cancer.check(np.array(answer["results"], np.float32).reshape(expected.shape), expected)
    else:
        assert status == 400, answer


@check_in(REST)
def what_is_wrong_is_told(client, packages, options):
    package = packages[0]
    row = package.question(package.vectors[0])[0].tolist()
    for path, body, expected, says in (
        (f"{package.name}:predict", {}, 400, "instances"),
        (f"{package.name}:predict", {"instances": [row], "inputs": [row]}, 400, "both"),
        (f"{package.name}:predict", {"instances": [row], "nonsense": 1}, 400, "nonsense"),
        (f"{package.name}:predict", {"instances": [row, row[:3]]}, 400, "equally long"),
        (f"{package.name}:predict", {"instances": ["text"]}, 400, "shape"),
        (f"{package.name}:predict", {"instances": []}, 400, "shape"),
        (f"{package.name}:predict", {"instances": {"a": 1}}, 400, "array"),
        (f"{package.name}:classify", {"examples": [1]}, 400, "object"),
        (f"{package.name}:explain", {"instances": [row]}, 404, "explain"),
        (f"{package.name}/labels/stable:predict", {"instances": [row]}, 404, "label"),
        (f"{package.name}/versions/7:predict", {"instances": [row]}, 404, "7"),
        ("no-such-model:predict", {"instances": [row]}, 404, "no-such-model"),
        (f"{options.two_inputs}:predict", {"instances": [{"x": X[0].tolist()}]}, 400, "y"),
        (f"{options.two_inputs}:predict", {"instances": [{"x": [1]}, {"y": [1]}]}, 400, "row 1"),
    ):
        status, answer = post(client, path, body)
        assert status == expected and says in answer["error"], (path, status, answer)
    answer = client.session.get(f"http://{client.url}/v1/models/{package.name}:predict", timeout=SECONDS)
    assert answer.status_code == 405, answer
    answer = client.session.get(f"http://{client.url}/v1/models/{package.name}", headers={"Authorization": ""})
    assert answer.status_code == 401, answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--url", "--ca", "--token", "--socket", "--two-inputs"):
        parser.add_argument(name, required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    options = parser.parse_args()
    packages = [Package(directory) for directory in options.package]
    done = failed = 0
    for name, client in clients(options).items():
        for check in CHECKS + (REST if name == "rest" else GRPC):
            done += 1
            try:
                check(client, packages, options)
                print(f"ok      {name}: {check.__name__}")
            except Exception:
                failed += 1
                print(f"FAILED  {name}: {check.__name__}\n{traceback.format_exc()}")
    print(f"{done - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
