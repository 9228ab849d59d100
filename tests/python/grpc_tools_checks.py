"""Asks a running agent what gRPC's own tools would: probes of health, and reflection, from which a call is made
without any definition at hand.

usage: grpc_tools_checks.py --url HOST:PORT --ca CA.pem --token TOKEN --socket PATH --protos DIRECTORY
                            --package DIRECTORY [--package …]

Each package directory is a model that the agent serves; the other directory holds the definitions, with which
reflection must agree. Prints a line per check and exits with 1 if one failed.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import traceback

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from packages import Package

SECONDS = 30
SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
}


def a_probe_finds_the_device_and_its_services_serving(channel, _options):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert reply.status == SERVING, reply
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="nonsense"), timeout=SECONDS)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    else:
        raise AssertionError("a service that is not there is healthy")


def a_watch_tells_the_state_at_once(channel, _options):
    stub = health_pb2_grpc.HealthStub(channel)
    for service, expected in (("", SERVING), ("nonsense", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert next(watch).status == expected
        watch.cancel()


def reflection_tells_the_services_and_enough_to_call_them(channel, options):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == SERVICES, database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    method = service.FindMethodByName("ModelInfer")
    ask, reply = (message_factory.GetMessageClass(d) for d in (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{service.full_name}/{method.name}", request_serializer=ask.SerializeToString, response_deserializer=reply.FromString
    )
    package = Package(options.package[0])
    values = package.question(package.vectors[0])
    spec = package.inputs[0]
    request = ask(model_name=package.name, raw_input_contents=[values.tobytes()])
    request.inputs.add(name=spec["name"], datatype=spec["datatype"], shape=values.shape)
    answered = call(request, timeout=SECONDS)
    assert answered.model_name == package.name and len(answered.raw_output_contents) == 1, answered
    for file in ("inference.proto", "health.proto"):
        assert pool.FindFileByName(file).name == file


def the_older_and_the_newer_reflection_say_the_same(channel, _options):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest")
    replies = []
    for version in ("v1", "v1alpha"):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = list(call(iter([request, request]), timeout=SECONDS))
        assert len(answers) == 2 and answers[0].original_request == request, answers
        replies.append(answers[0].file_descriptor_response)
    assert replies[0] == replies[1] and replies[0].file_descriptor_proto, replies


def the_descriptors_are_those_of_the_definitions(_channel, options):
    def files(path):
        described = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        return {file.name: file for file in described.file}

    with tempfile.TemporaryDirectory() as directory:
        fresh = pathlib.Path(directory) / "descriptors.binpb"
        subprocess.run([options.protos / "compile.sh", fresh], check=True, env={"EDGEWARD_PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
        assert files(fresh) == files(options.protos / "descriptors.binpb"), "run agent/protos/compile.sh"


CHECKS = (
    a_probe_finds_the_device_and_its_services_serving,
    a_watch_tells_the_state_at_once,
    reflection_tells_the_services_and_enough_to_call_them,
    the_older_and_the_newer_reflection_say_the_same,
    the_descriptors_are_those_of_the_definitions,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--url", "--ca", "--token", "--socket"):
        parser.add_argument(name, required=True)
    parser.add_argument("--protos", type=pathlib.Path, required=True)
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    options = parser.parse_args()
    trusted = grpc.ssl_channel_credentials(pathlib.Path(options.ca).read_bytes())
    token = grpc.access_token_call_credentials(options.token)
    doors = [
        ("tls", grpc.secure_channel(options.url, grpc.composite_channel_credentials(trusted, token))),
        ("unix", grpc.insecure_channel(f"unix:{options.socket}")),
    ]
    done = failed = 0
    for name, channel in doors:
        for check in CHECKS:
            done += 1
            try:
                check(channel, options)
                print(f"ok      {name}: {check.__name__}")
            except Exception:
                failed += 1
                print(f"FAILED  {name}: {check.__name__}\n{traceback.format_exc()}")
        channel.close()
    print(f"{done - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
