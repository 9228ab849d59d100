"""Asks a running agent what a user of kserve's gRPC client would: over TLS with a bearer token, and over the Unix
socket.

usage: kserve_grpc_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --socket PATH --package DIRECTORY [--package …]

Each package directory is a model that the agent serves. Prints a line per check and exits with 1 if one failed.
"""

import argparse
import asyncio
import logging
import pathlib
import sys
import traceback

import grpc
import numpy as np

from kserve_checks import question
from packages import Package

from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import InferInput, InferRequest


async def health(client, headers, packages):
    assert await client.is_server_live(headers=headers)
    assert await client.is_server_ready(headers=headers)
    for package in packages:
        assert await client.is_model_ready(package.name, headers=headers)
    assert not await client.is_model_ready("no-such-model", headers=headers)


async def infer_raw(client, headers, packages):
    for package in packages:
        questions = [(package.question(v), package.expected(v)) for v in package.vectors]
        for values, expected in [*questions, package.rows(30)]:
            response = await client.infer(question(package, values, True), headers=headers)
            assert (response.model_name, response.model_version) == (package.name, package.version), response
            package.check(response.outputs[0].as_numpy(), expected)


async def infer_typed(client, headers, packages):
    for package in packages:
        spec = package.inputs[0]
        for vector in package.vectors:
            values = package.question(vector)
            tensor = InferInput(spec["name"], list(values.shape), spec["datatype"], data=values.ravel().tolist())
            request = InferRequest(model_name=package.name, infer_inputs=[tensor], request_id="one")
            response = await client.infer(request, headers=headers)
            assert response.id == "one", response.id
            package.check(response.outputs[0].as_numpy(), package.expected(vector))


async def refusals_have_a_reason(client, headers, packages):
    package = packages[0]
    values = np.zeros((1, 3), np.float32)
    unknown = question(package, values, True)
    unknown.model_name = "no-such-model"
    for request, code, says in (
        (question(package, values, True), grpc.StatusCode.INVALID_ARGUMENT, package.inputs[0]["name"]),
        (unknown, grpc.StatusCode.NOT_FOUND, "no-such-model"),
    ):
        try:
            await client.infer(request, headers=headers)
        except grpc.RpcError as error:
            assert error.code() == code and says in error.details(), error
        else:
            raise AssertionError(f"was answered, not refused with {code}")


async def run(options):
    logging.disable()
    packages = [Package(directory) for directory in options.package]
    trusted = grpc.ssl_channel_credentials(pathlib.Path(options.ca).read_bytes())
    doors = [
        ("tls", InferenceGRPCClient(options.url, creds=trusted), (("authorization", f"Bearer {options.token}"),)),
        ("unix", InferenceGRPCClient(f"unix:{options.socket}"), ()),
    ]
    done = failed = 0
    for name, client, headers in doors:
        for check in (health, infer_raw, infer_typed, refusals_have_a_reason):
            done += 1
            try:
                await check(client, headers, packages)
                print(f"ok      {name}: {check.__name__}")
            except Exception:
                failed += 1
                print(f"FAILED  {name}: {check.__name__}\n{traceback.format_exc()}")
        await client.close()
    print(f"{done - failed} passed, {failed} failed")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--url", "--ca", "--token", "--socket"):
        parser.add_argument(name, required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    sys.exit(1 if asyncio.run(run(parser.parse_args())) else 0)


if __name__ == "__main__":
    main()
