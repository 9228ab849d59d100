"""Asks a running agent what a user of tritonclient's gRPC client would: over TLS with a bearer token, and over the
Unix socket.

usage: tritonclient_grpc_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --socket PATH --two-inputs MODEL
                                   --package DIRECTORY [--package …]

Each package directory is a model that the agent serves; MODEL is one with the inputs x and y and the outputs sum and
product; words and two (odd_models.py) are served too. Prints a line per check and exits with 1 if one failed.
"""

import argparse
import pathlib
import queue
import sys
import traceback

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from packages import NUMPY, Package

SECONDS = 30
TYPED = {"FP32": "fp32_contents", "INT8": "int_contents", "UINT8": "uint_contents"}


class Door:
    """One way to the agent, with what every call over it must carry."""

    def __init__(self, name, client, headers):
        self.name, self.client, self.headers = name, client, headers

    def call(self, method, *arguments, **more):
        function = getattr(self.client, method)
        return function(*arguments, headers=dict(self.headers), client_timeout=SECONDS, **more)

    def infer(self, model, inputs, **more):
        return self.call("infer", model, inputs, **more)


def tensor(name, values, datatype):
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def inputs(package, values):
    spec = package.inputs[0]
    return [tensor(spec["name"], values, spec["datatype"])]


def answer(package, result):
    return result.as_numpy(package.outputs[0]["name"])


def refused(code, call):
    """`call` must raise the client's own error with this gRPC code; returns the server's text."""
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", f"{error.status()} instead of {code}: {error.message()}"
        assert error.message(), "a refusal without a reason"
        return error.message()
    raise AssertionError(f"was answered, not refused with {code}")


CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def health(door, packages, _options):
    assert door.call("is_server_live")
    assert door.call("is_server_ready")
    for package in packages:
        assert door.call("is_model_ready", package.name)
        assert door.call("is_model_ready", package.name, package.version)
    assert not door.call("is_model_ready", "no-such-model")
    assert not door.call("is_model_ready", packages[0].name, "99.0.0")


@check
def metadata_and_configuration_are_those_of_the_manifest(door, packages, _options):
    server = door.call("get_server_metadata")
    assert server.name and server.version and "statistics" in server.extensions, server
    for package in packages:
        metadata = door.call("get_model_metadata", package.name)
        config = door.call("get_model_config", package.name).config
        assert (metadata.name, list(metadata.versions)) == (package.name, [package.version]), metadata
        for described, configured, specs in (
            (metadata.inputs, config.input, package.inputs),
            (metadata.outputs, config.output, package.outputs),
        ):
            expected = [(s["name"], s["datatype"], s["shape"]) for s in specs]
            assert [(t.name, t.datatype, list(t.shape)) for t in described] == expected, described
            types = [f"TYPE_{s['datatype']}" for s in specs]
            assert [triton.model_config_pb2.DataType.Name(t.data_type) for t in configured] == types, configured
            assert [list(t.dims) for t in configured] == [s["shape"] for s in specs], configured
    refused("NOT_FOUND", lambda: door.call("get_model_metadata", "no-such-model"))


@check
def raw_values_are_answered(door, packages, _options):
    for package in packages:
        for vector in package.vectors:
            result = door.infer(package.name, inputs(package, package.question(vector)))
            package.check(answer(package, result), package.expected(vector))


@check
def the_largest_classes_come_in_order(door, packages, _options):
    for package in packages:
        name = package.outputs[0]["name"]
        wish = triton.InferRequestedOutput(name, class_count=2)
        for vector in package.vectors:
            result = door.infer(package.name, inputs(package, package.question(vector)), outputs=[wish])
            expected = package.expected(vector)
            rows = expected.reshape(expected.shape[0], -1)
            classes = result.as_numpy(name)
            assert classes.shape == (rows.shape[0], min(2, rows.shape[1])), classes
            for row, texts in zip(rows, classes):
                values, indices = zip(*(text.decode().split(":") for text in texts))
                assert np.allclose([float(v) for v in values], row[[int(i) for i in indices]], atol=1e-4), texts
                assert np.isclose(row[int(indices[0])], row.max(), atol=1e-4), texts


@check
def typed_values_are_answered(door, packages, _options):
    for package in packages:
        spec = package.inputs[0]
        for vector in package.vectors:
            values = package.question(vector)
            request = service_pb2.ModelInferRequest(model_name=package.name)
            given = request.inputs.add(name=spec["name"], datatype=spec["datatype"], shape=values.shape)
            getattr(given.contents, TYPED[spec["datatype"]]).extend(values.ravel().tolist())
            response = door.client._client_stub.ModelInfer(request, metadata=door.headers.items(), timeout=SECONDS)
            package.check(answer(package, triton.InferResult(response)), package.expected(vector))


@check
def two_inputs_in_any_order_and_a_choice_of_outputs(door, _packages, options):
    x = np.array([[1.5, -2.0, 0.25]], np.float32)
    y = np.array([[4.0, 0.5, 8.0]], np.float32)
    given = [tensor("x", x, "FP32"), tensor("y", y, "FP32")]
    for order in (given, given[::-1]):
        result = door.infer(options.two_inputs, order)
        assert np.array_equal(result.as_numpy("sum"), x + y)
        assert np.array_equal(result.as_numpy("product"), x * y)
    only = door.infer(options.two_inputs, given, outputs=[triton.InferRequestedOutput("product")])
    assert np.array_equal(only.as_numpy("product"), x * y)
    assert only.as_numpy("sum") is None
    says = refused("INVALID_ARGUMENT", lambda: door.infer(options.two_inputs, given[:1]))
    assert "y" in says, says


@check
def words_go_raw_and_typed_and_signatures_are_chosen(door, _packages, _options):
    given = np.array(["zero", "zw\u00f6lf", ""], object)
    picks = np.array([1, 0, 1], np.int32)
    expected = [given[p].encode() for p in picks]
    result = door.infer("words", [tensor("words", given, "BYTES"), tensor("picks", picks, "INT32")])
    assert result.as_numpy("picked").tolist() == expected, result.as_numpy("picked")
    request = service_pb2.ModelInferRequest(model_name="words")
    words = request.inputs.add(name="words", datatype="BYTES", shape=given.shape)
    words.contents.bytes_contents.extend(word.encode() for word in given)
    numbers = request.inputs.add(name="picks", datatype="INT32", shape=picks.shape)
    numbers.contents.int_contents.extend(picks.tolist())
    response = door.client._client_stub.ModelInfer(request, metadata=door.headers.items(), timeout=SECONDS)
    assert triton.InferResult(response).as_numpy("picked").tolist() == expected
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    for signature, factor in (("negate", -1), ("double", 2)):
        result = door.infer("two", [tensor("x", x, "FP32")], parameters={"signature_name": signature})
        assert np.array_equal(result.as_numpy("y"), factor * x)


@check
def nan_goes_through_bit_by_bit(door, packages, _options):
    package = next(p for p in packages if p.inputs[0]["datatype"] == "FP32")
    values = package.question(package.vectors[0])
    values.flat[3] = np.nan
    assert np.isnan(answer(package, door.infer(package.name, inputs(package, values)))).any()


@check
def id_version_and_timeout_are_honoured(door, packages, _options):
    package = packages[0]
    given = inputs(package, package.question(package.vectors[0]))
    for version in (package.version, "1"):
        result = door.infer(
            package.name, given, model_version=version, request_id="bed 7 / scan 12", timeout=20_000_000
        )
        response = result.get_response()
        assert (response.id, response.model_version) == ("bed 7 / scan 12", package.version), response
    refused("NOT_FOUND", lambda: door.infer(package.name, given, model_version="99.0.0"))
    refused("DEADLINE_EXCEEDED", lambda: door.infer(package.name, given, timeout=1))
    refused("INVALID_ARGUMENT", lambda: door.infer(package.name, given, priority=1))


@check
def compressed_messages_mean_the_same(door, packages, _options):
    for package in packages:
        values, expected = package.rows(30)
        for coding in ("gzip", "deflate"):
            result = door.infer(package.name, inputs(package, values), compression_algorithm=coding)
            package.check(answer(package, result), expected)


@check
def many_at_once_are_answered(door, packages, _options):
    answers = queue.Queue()
    for number in range(40):
        package = packages[number % len(packages)]
        vector = package.vectors[number % len(package.vectors)]
        done = lambda result, error, p=package, v=vector: answers.put((p, v, result, error))
        given = inputs(package, package.question(vector))
        door.client.async_infer(package.name, given, done, headers=dict(door.headers), client_timeout=SECONDS)
    for _ in range(40):
        package, vector, result, error = answers.get(timeout=SECONDS)
        assert error is None, error
        package.check(answer(package, result), package.expected(vector))


@check
def a_stream_answers_in_order_and_survives_a_wrong_message(door, packages, _options):
    answers = queue.Queue()
    door.client.start_stream(lambda result, error: answers.put((result, error)), headers=dict(door.headers))
    asked = []
    for number, package in enumerate(packages * 3):
        vector = package.vectors[number % len(package.vectors)]
        asked.append((package, vector))
        given = inputs(package, package.question(vector))
        door.client.async_stream_infer(package.name, given, request_id=str(number))
    door.client.async_stream_infer("no-such-model", given, request_id="wrong")
    last = (packages[0], packages[0].vectors[0])
    given = inputs(last[0], last[0].question(last[1]))
    door.client.async_stream_infer(last[0].name, given, request_id="last", enable_empty_final_response=True)
    for number, (package, vector) in enumerate(asked):
        result, error = answers.get(timeout=SECONDS)
        assert error is None, error
        assert result.get_response().id == str(number), result.get_response().id
        package.check(answer(package, result), package.expected(vector))
    _, error = answers.get(timeout=SECONDS)
    assert "no-such-model" in error.message(), error
    result, error = answers.get(timeout=SECONDS)
    assert error is None, error
    response = result.get_response()
    assert response.id == "last" and response.parameters["triton_final_response"].bool_param, response
    last[0].check(answer(last[0], result), last[0].expected(last[1]))
    door.client.stop_stream()


@check
def statistics_and_index(door, packages, _options):
    package = packages[0]
    count = lambda: door.call("get_inference_statistics", package.name).model_stats[0]
    before = count()
    for _ in range(3):
        door.infer(package.name, inputs(package, package.question(package.vectors[0])))
    after = count()
    assert after.inference_count - before.inference_count == 3, (before, after)
    for kind in ("success", "queue", "compute_infer"):
        sums = [getattr(s.inference_stats, kind) for s in (before, after)]
        assert sums[1].count - sums[0].count == 3, kind
        assert sums[1].ns > sums[0].ns or kind == "queue", kind
    assert after.last_inference > 1_500_000_000_000, after.last_inference
    every = {s.name for s in door.call("get_inference_statistics").model_stats}
    index = {m.name: (m.version, m.state) for m in door.call("get_model_repository_index").models}
    for package in packages:
        assert package.name in every, every
        assert index[package.name] == (package.version, "READY"), index
    refused("NOT_FOUND", lambda: door.call("get_inference_statistics", "no-such-model"))


@check
def wrong_requests_are_refused_by_name(door, packages, _options):
    package = packages[0]
    spec = package.inputs[0]
    shape = [1 if d == -1 else d for d in spec["shape"]]
    numpy_type = NUMPY[spec["datatype"]]

    def infer(name, datatype, shape, numpy_type):
        given = tensor(name, np.zeros(shape, numpy_type), datatype)
        return lambda: door.infer(package.name, [given])

    infer(spec["name"], spec["datatype"], shape, numpy_type)()
    wrong = lambda call: refused("INVALID_ARGUMENT", call)
    assert "nonsense" in wrong(infer("nonsense", spec["datatype"], shape, numpy_type))
    assert spec["name"] in wrong(infer(spec["name"], "FP64", shape, np.float64))
    assert spec["name"] in wrong(infer(spec["name"], spec["datatype"], shape + [2], numpy_type))
    given = inputs(package, package.question(package.vectors[0]))
    unknown = [triton.InferRequestedOutput("nonsense")]
    assert "nonsense" in wrong(lambda: door.infer(package.name, given, outputs=unknown))
    twice = inputs(package, package.question(package.vectors[0])) + given
    assert spec["name"] in wrong(lambda: door.infer(package.name, twice))
    region = triton.InferRequestedOutput(package.outputs[0]["name"])
    region.set_shared_memory("region", 4)
    assert "shared memory" in wrong(lambda: door.infer(package.name, given, outputs=[region]))
    assert "no-such-model" in refused("NOT_FOUND", lambda: door.infer("no-such-model", given))
    short = inputs(package, package.question(package.vectors[0]))
    short[0]._raw_content = short[0]._raw_content[:-1]
    assert spec["name"] in wrong(lambda: door.infer(package.name, short))


@check
def what_is_not_here_is_said_so(door, packages, _options):
    says = refused("PERMISSION_DENIED", lambda: door.call("load_model", packages[0].name))
    assert "keys" in says, says
    refused("PERMISSION_DENIED", lambda: door.call("unload_model", packages[0].name))
    assert door.call("is_model_ready", packages[0].name)
    refused("UNIMPLEMENTED", lambda: door.call("get_system_shared_memory_status"))
    refused("UNIMPLEMENTED", lambda: door.call("get_trace_settings"))


def without_the_right_token_nothing_is_answered(options):
    trusted = grpc.ssl_channel_credentials(pathlib.Path(options.ca).read_bytes())
    client = triton.InferenceServerClient(options.url, creds=trusted)
    for headers in ({"authorization": "Bearer not-the-token"}, {}):
        refused("UNAUTHENTICATED", lambda: client.is_server_live(headers=headers, client_timeout=SECONDS))
    client.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--url", "--ca", "--token", "--socket", "--two-inputs"):
        parser.add_argument(name, required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    options = parser.parse_args()
    packages = [Package(directory) for directory in options.package]
    token = {"authorization": f"Bearer {options.token}"}
    doors = [
        Door("tls", triton.InferenceServerClient(options.url, ssl=True, root_certificates=options.ca), token),
        Door("unix", triton.InferenceServerClient(f"unix:{options.socket}"), {}),
    ]
    checks = [(door.name, check, (door, packages, options)) for door in doors for check in CHECKS]
    checks.append(("tls", without_the_right_token_nothing_is_answered, (options,)))
    failed = 0
    for name, function, arguments in checks:
        try:
            function(*arguments)
            print(f"ok      {name}: {function.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  {name}: {function.__name__}\n{traceback.format_exc()}")
    for door in doors:
        door.client.close()
    print(f"{len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
