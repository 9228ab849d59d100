"""Asks a running agent what a user of kserve's REST client would: over TLS in HTTP/1.1 and HTTP/2, and over the
Unix socket, where HTTP/2 is spoken without having been agreed on.

usage: kserve_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --socket PATH --package DIRECTORY [--package …]

Each package directory is a model that the agent serves, as it does `words` and `two` of odd_models.py. Prints a line per check and exits with 1 if one failed.
In a process of its own: kserve and tritonclient cannot be loaded together.
"""

import argparse
import asyncio
import importlib.util
import pathlib
import ssl
import sys
import traceback
import types

import httpx
import numpy as np

from packages import Package


def without_the_server():
    """`import kserve` loads its server and the client of Kubernetes: some hundred megabytes that its REST client
    does not need. So the package is entered by a side door: its modules are found, its __init__ is not run."""
    spec = importlib.util.find_spec("kserve")
    package = types.ModuleType("kserve")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["kserve"] = package


without_the_server()
from kserve.inference_client import InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest  # noqa: E402


def question(package, values, binary):
    spec = package.inputs[0]
    tensor = InferInput(spec["name"], list(values.shape), spec["datatype"])
    tensor.set_data_from_numpy(values, binary_data=binary)
    parameters = {"binary_data_output": binary}
    return InferRequest(model_name=package.name, infer_inputs=[tensor], parameters=parameters)


async def health(client, base, headers, packages):
    assert await client.is_server_live(base, headers=headers)
    assert await client.is_server_ready(base, headers=headers)
    for package in packages:
        assert await client.is_model_ready(base, package.name, headers=headers)
    assert not await client.is_model_ready(base, "no-such-model", headers=headers)


async def infer(client, base, headers, packages, binary):
    for package in packages:
        questions = [(package.question(v), package.expected(v)) for v in package.vectors]
        # httpx asks for a compressed answer by itself; that of many rows is long enough to be.
        for values, expected in [*questions, package.rows(30)]:
            response = await client.infer(
                base, question(package, values, binary), model_name=package.name, headers=dict(headers)
            )
            assert response.model_name == package.name, response.model_name
            package.check(response.outputs[0].as_numpy(), expected)


async def infer_json(*arguments):
    await infer(*arguments, binary=False)


async def infer_binary(*arguments):
    await infer(*arguments, binary=True)


async def strings_and_signatures(client, base, headers, _packages):
    # This client reads answers as text only, whatever form they came in.
    values = ["plain", "", "zwölf"]
    for binary in (False, True):
        words, picks = InferInput("words", [3], "BYTES"), InferInput("picks", [2], "INT32")
        words.set_data_from_numpy(np.array(values, np.object_), binary_data=binary)
        picks.set_data_from_numpy(np.array([2, 0], np.int32), binary_data=binary)
        asked = InferRequest("words", [words, picks], parameters={"binary_data_output": binary})
        response = await client.infer(base, asked, model_name="words", headers=dict(headers))
        picked = [v.decode() if isinstance(v, bytes) else v for v in response.outputs[0].as_numpy()]
        assert picked == [values[2], values[0]], picked
    x = InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones((1, 4), np.float32))
    for parameters, expected in (({}, -1), ({"signature_name": "double"}, 2)):
        asked = InferRequest("two", [x], parameters={"binary_data_output": True, **parameters})
        response = await client.infer(base, asked, model_name="two", headers=dict(headers))
        assert (response.outputs[0].as_numpy() == expected).all(), response.outputs[0].as_numpy()


async def refusals_have_a_reason(client, base, headers, packages):
    package = packages[0]
    values = np.zeros((1, 3), np.float32)
    for name, status, says in ((package.name, 400, package.inputs[0]["name"]), ("no-such-model", 404, "no-such-model")):
        try:
            await client.infer(base, question(package, values, True), model_name=name, headers=dict(headers))
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == status, error
            assert says in str(error), error
        else:
            raise AssertionError(f"was answered, not refused with {status}")


def transports(options):
    """How the client reaches the agent: a name, the base of the paths, the version that must be spoken."""
    trusted = ssl.create_default_context(cafile=options.ca)
    tls, local = f"https://{options.url}", "http://localhost"
    unix = options.socket
    return [
        ("tls, http/1.1", tls, "HTTP/1.1", httpx.AsyncHTTPTransport(verify=trusted)),
        ("tls, http/2", tls, "HTTP/2", httpx.AsyncHTTPTransport(verify=trusted, http2=True)),
        ("unix, http/1.1", local, "HTTP/1.1", httpx.AsyncHTTPTransport(uds=unix)),
        ("unix, http/2", local, "HTTP/2", httpx.AsyncHTTPTransport(uds=unix, http1=False, http2=True)),
    ]


async def run(options):
    packages = [Package(directory) for directory in options.package]
    headers = {"Authorization": f"Bearer {options.token}"}
    done = failed = 0
    for name, base, version, transport in transports(options):
        spoken = set()

        async def note(response):
            spoken.add(response.http_version)

        async def version_is_the_one_expected(*_):
            assert spoken == {version}, f"{spoken} instead of {version}"

        async with InferenceRESTClient(RESTConfig(transport=transport, protocol="v2", timeout=30)) as client:
            client._client.event_hooks = {"response": [note]}
            checks = (health, infer_json, infer_binary, strings_and_signatures, refusals_have_a_reason, version_is_the_one_expected)
            for check in checks:
                done += 1
                try:
                    await check(client, base, headers, packages)
                    print(f"ok      {name}: {check.__name__}")
                except Exception:
                    failed += 1
                    print(f"FAILED  {name}: {check.__name__}\n{traceback.format_exc()}")
    print(f"{done - failed} passed, {failed} failed")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    sys.exit(1 if asyncio.run(run(parser.parse_args())) else 0)


if __name__ == "__main__":
    main()
