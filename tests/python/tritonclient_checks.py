"""Asks a running agent everything that a user of the tritonclient package would, over TLS with a bearer token.

usage: tritonclient_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --package DIRECTORY [--package …]

Each package directory (manifest.json and golden.json) is a model that the agent serves; its golden vectors are
the expected answers. The models `words` and `two` of odd_models.py are served, too. Prints a line per check and exits with 1 if one failed.
"""

import argparse
import pathlib
import sys
import traceback

import gevent.ssl
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from packages import NUMPY, Package


class Model(Package):
    """A package, in this client's own types."""

    def input(self, vector, binary):
        return self.tensor(self.question(vector), binary)

    def tensor(self, values, binary):
        spec = self.inputs[0]
        tensor = triton.InferInput(spec["name"], list(values.shape), spec["datatype"])
        tensor.set_data_from_numpy(values, binary_data=binary)
        return [tensor]

    def wish(self, binary):
        return [triton.InferRequestedOutput(self.outputs[0]["name"], binary_data=binary)]

    def check(self, result, expected):
        super().check(result.as_numpy(self.outputs[0]["name"]), expected)


def client(options, token=None):
    made = triton.InferenceServerClient(
        url=options.url,
        ssl=True,
        ssl_options={"ca_certs": options.ca},
        ssl_context_factory=gevent.ssl.create_default_context,
        concurrency=4,
        network_timeout=30,
        connection_timeout=30,
    )
    # The client writes headers of its own into the dictionary it is given, so each call below gets a copy: a
    # header length of one request must not travel with the next.
    return made, {"Authorization": f"Bearer {options.token if token is None else token}"}


def refused(status, call):
    """`call` must raise the client's own error with this HTTP status; returns the server's text."""
    try:
        call()
    except InferenceServerException as error:
        assert str(status) in str(error.status()), f"status {error.status()} instead of {status}: {error.message()}"
        assert error.message(), "a refusal without a reason"
        return error.message()
    raise AssertionError(f"was answered, not refused with {status}")


CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def server_is_live_and_ready(server, headers, _options, _models):
    assert server.is_server_live(headers=dict(headers))
    assert server.is_server_ready(headers=dict(headers))


@check
def server_metadata_names_the_binary_extension(server, headers, _options, _models):
    metadata = server.get_server_metadata(headers=dict(headers))
    assert metadata["name"] and metadata["version"], metadata
    assert "binary_tensor_data" in metadata["extensions"], metadata


@check
def each_model_is_ready_by_name_and_by_version(server, headers, _options, models):
    for model in models:
        assert server.is_model_ready(model.name, headers=dict(headers))
        assert server.is_model_ready(model.name, model.version, headers=dict(headers))
    assert not server.is_model_ready("no-such-model", headers=dict(headers))
    assert not server.is_model_ready(models[0].name, "99.0.0", headers=dict(headers))


@check
def model_metadata_is_that_of_the_manifest(server, headers, _options, models):
    for model in models:
        metadata = server.get_model_metadata(model.name, headers=dict(headers))
        assert metadata["name"] == model.name, metadata
        assert model.version in metadata["versions"], metadata
        for kind, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
            expected = [(s["name"], s["datatype"], s["shape"]) for s in specs]
            found = [(t["name"], t["datatype"], t["shape"]) for t in metadata[kind]]
            assert found == expected, f"{kind}: {found} instead of {expected}"


@check
def configuration_statistics_and_index_are_there(server, headers, _options, models):
    for model in models:
        config = server.get_model_config(model.name, headers=dict(headers))
        found = [(t["name"], t["data_type"], t["dims"]) for t in config["input"]]
        assert found == [(s["name"], f"TYPE_{s['datatype']}", s["shape"]) for s in model.inputs], config

        def successes():
            every = server.get_inference_statistics(headers=dict(headers))["model_stats"]
            own = server.get_inference_statistics(model.name, model.version, headers=dict(headers))["model_stats"]
            (only,) = [stats for stats in every if stats["name"] == model.name]
            assert own == [only], (own, only)
            return only["inference_stats"]["success"]["count"]

        before = successes()
        server.infer(model.name, model.input(model.vectors[0], True), headers=dict(headers))
        assert successes() == before + 1
        index = server.get_model_repository_index(headers=dict(headers))
        assert {"name": model.name, "version": model.version, "state": "READY", "reason": ""} in index, index
    refused(404, lambda: server.get_inference_statistics("no-such-model", headers=dict(headers)))
    refused(403, lambda: server.unload_model(models[0].name, headers=dict(headers)))
    assert server.is_model_ready(models[0].name, headers=dict(headers))


@check
def the_largest_classes_come_in_order(server, headers, _options, models):
    for model in models:
        for vector in model.vectors:
            for binary in (True, False):
                name = model.outputs[0]["name"]
                wish = triton.InferRequestedOutput(name, binary_data=binary, class_count=3)
                given = model.input(vector, True)
                result = server.infer(model.name, given, outputs=[wish], headers=dict(headers))
                classes = result.as_numpy(name)
                expected = model.expected(vector)
                rows = expected.reshape(expected.shape[0], -1)
                assert classes.shape == (rows.shape[0], min(3, rows.shape[1])), classes
                for row, texts in zip(rows, classes):
                    pairs = [(t.decode() if isinstance(t, bytes) else t).split(":") for t in texts]
                    largest = [row[int(index)] for _, index in pairs]
                    assert np.allclose([float(value) for value, _ in pairs], largest, atol=1e-4), texts
                    assert np.allclose(largest, np.sort(row)[::-1][: len(pairs)], atol=1e-4), texts


def infer_with(input_binary, output_binary):
    def run(server, headers, _options, models):
        for model in models:
            for vector in model.vectors:
                result = server.infer(
                    model.name,
                    model.input(vector, input_binary),
                    outputs=model.wish(output_binary),
                    headers=dict(headers),
                )
                model.check(result, model.expected(vector))

    kind = {True: "binary", False: "json"}
    run.__name__ = f"infer_with_{kind[input_binary]}_input_and_{kind[output_binary]}_output"
    return check(run)


for given in (False, True):
    for wished in (False, True):
        infer_with(given, wished)


@check
def without_listed_outputs_all_are_answered(server, headers, _options, models):
    for model in models:
        for binary in (False, True):
            result = server.infer(model.name, model.input(model.vectors[0], binary), headers=dict(headers))
            model.check(result, model.expected(model.vectors[0]))


@check
def a_request_id_is_echoed(server, headers, _options, models):
    model = models[0]
    given = model.input(model.vectors[0], True)
    response = server.infer(model.name, given, request_id="bed 7 / scan 12", headers=dict(headers)).get_response()
    assert response["id"] == "bed 7 / scan 12", response
    assert response["model_name"] == model.name, response


@check
def a_version_in_the_path_is_honoured(server, headers, _options, models):
    model = models[0]
    given = model.input(model.vectors[0], True)
    result = server.infer(model.name, given, model_version=model.version, headers=dict(headers))
    model.check(result, model.expected(model.vectors[0]))
    refused(404, lambda: server.infer(model.name, given, model_version="99.0.0", headers=dict(headers)))


@check
def a_batch_is_answered_row_by_row(server, headers, _options, models):
    for model in models:
        if model.inputs[0]["shape"][0] != -1:
            continue
        given, expected = model.rows(len(model.vectors))
        model.check(server.infer(model.name, model.tensor(given, True), headers=dict(headers)), expected)


@check
def compressed_requests_and_answers_mean_the_same(server, headers, _options, models):
    for model in models:
        given, expected = model.rows(30)
        for coding in ("gzip", "deflate"):
            for binary in (False, True):
                result = server.infer(
                    model.name,
                    model.tensor(given, binary),
                    outputs=model.wish(binary),
                    headers=dict(headers),
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                model.check(result, expected)


@check
def nan_is_no_json_and_travels_as_binary(server, headers, _options, models):
    model = next(m for m in models if m.inputs[0]["datatype"] == "FP32")
    given = model.question(model.vectors[0])
    given.flat[3] = np.nan
    infer = lambda given, binary: server.infer(model.name, given, outputs=model.wish(binary), headers=dict(headers))
    assert "element 3" in refused(400, lambda: infer(model.tensor(given, False), True))
    answer = infer(model.tensor(given, True), True).as_numpy(model.outputs[0]["name"])
    assert np.isnan(answer).any(), answer
    assert "binary_data" in refused(422, lambda: infer(model.tensor(given, True), False))


@check
def strings_travel_as_json_and_as_bytes(server, headers, _options, _models):
    text = np.array(["plain", "", "zwölf\n", "\U0001f600"], dtype=np.object_)
    anything = np.array([b"\xff\x00", b"", b"text"], dtype=np.object_)
    for values, given, wished in ((text, False, False), (text, True, False), (text, False, True), (anything, True, True)):
        words = triton.InferInput("words", list(values.shape), "BYTES")
        words.set_data_from_numpy(values, binary_data=given)
        picks = triton.InferInput("picks", [2], "INT32")
        picks.set_data_from_numpy(np.array([2, 0], np.int32))
        wish = [triton.InferRequestedOutput(name, binary_data=wished) for name in ("picked", "listed")]
        result = server.infer("words", [words, picks], outputs=wish, headers=dict(headers))
        in_bytes = lambda array: [v if isinstance(v, bytes) else v.encode() for v in array.ravel()]
        expected = in_bytes(values)
        assert in_bytes(result.as_numpy("picked")) == [expected[2], expected[0]], result.as_numpy("picked")
        listed = result.as_numpy("listed")
        assert listed.shape == (len(values), 1) and in_bytes(listed) == expected, listed
    assert server.get_model_metadata("words", headers=dict(headers))["inputs"][0]["datatype"] == "BYTES"


@check
def a_signature_is_chosen_by_its_name(server, headers, _options, _models):
    values = np.array([[1, -2, 0.5, 0]], np.float32)
    x = triton.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(values)
    infer = lambda **more: server.infer("two", [x], headers=dict(headers), **more).as_numpy("y")
    assert (infer() == -values).all()
    assert (infer(parameters={"signature_name": "double"}) == 2 * values).all()
    assert "halve" in refused(400, lambda: infer(parameters={"signature_name": "halve"}))


@check
def four_requests_at_once_are_answered(server, headers, _options, models):
    pending = []
    for number in range(40):
        model = models[number % len(models)]
        vector = model.vectors[number % len(model.vectors)]
        pending.append((model, vector, server.async_infer(model.name, model.input(vector, True), headers=dict(headers))))
    for model, vector, request in pending:
        model.check(request.get_result(), model.expected(vector))


@check
def wrong_requests_are_refused_by_name(server, headers, _options, models):
    model = models[0]
    spec = model.inputs[0]
    shape = [1 if d == -1 else d for d in spec["shape"]]

    def infer(name, datatype, shape, numpy_type):
        tensor = triton.InferInput(name, shape, datatype)
        tensor.set_data_from_numpy(np.zeros(shape, numpy_type))
        return lambda: server.infer(model.name, [tensor], headers=dict(headers))

    right = (spec["name"], spec["datatype"], shape, NUMPY[spec["datatype"]])
    infer(*right)()
    assert "nonsense" in refused(400, infer("nonsense", *right[1:]))
    assert spec["name"] in refused(400, infer(spec["name"], "FP64", shape, np.float64))
    assert spec["name"] in refused(400, infer(spec["name"], spec["datatype"], shape + [2], right[3]))
    unknown = triton.InferRequestedOutput("nonsense")
    given = model.input(model.vectors[0], True)
    assert "nonsense" in refused(400, lambda: server.infer(model.name, given, outputs=[unknown], headers=dict(headers)))
    assert "no-such-model" in refused(404, lambda: server.infer("no-such-model", given, headers=dict(headers)))


@check
def without_the_right_token_nothing_is_answered(_server, _headers, options, models):
    server, headers = client(options, token="not-the-token")
    model = models[0]
    given = model.input(model.vectors[0], True)
    refused(401, lambda: server.infer(model.name, given, headers=dict(headers)))
    refused(401, lambda: server.infer(model.name, given))
    server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    options = parser.parse_args()
    models = [Model(directory) for directory in options.package]
    server, headers = client(options)
    failed = 0
    for function in CHECKS:
        try:
            function(server, headers, options, models)
            print(f"ok      {function.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  {function.__name__}\n{traceback.format_exc()}")
    server.close()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
