"""Asks a model the same question over the Unix socket, without a pause, until SIGTERM; then says how it went.

    keep_asking.py SOCKET MODEL QUESTION.json REPORT.json

The report: {"requests": n, "failed": n, "by_version": {"1.0.0": n}, "failures": ["…"]}. Python's own library only.
"""

import http.client
import json
import signal
import socket
import sys


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def main():
    path, model, question, report_path = sys.argv[1:]
    with open(question, "rb") as file:
        body = file.read()
    report = {"requests": 0, "failed": 0, "by_version": {}, "failures": []}
    going = True

    def stop(*_):
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    connection = UnixConnection(path)
    while going:
        report["requests"] += 1
        try:
            connection.request(
                "POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise ValueError(f"{response.status}: {answer}")
            version = answer["model_version"]
            report["by_version"][version] = report["by_version"].get(version, 0) + 1
        except Exception as problem:  # whatever it was, the request failed
            report["failed"] += 1
            report["failures"] = [*report["failures"], repr(problem)][:10]
            connection.close()
    with open(report_path, "w", encoding="utf-8") as file:
        json.dump(report, file)


main()
