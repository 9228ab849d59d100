"""The public models of pyopen-wakeword: small real audio networks that we did not make.

`python public_models.py` prints the directory that holds them.
"""

import pathlib

import pyopen_wakeword

DIRECTORY = pathlib.Path(pyopen_wakeword.__file__).parent / "models"

if __name__ == "__main__":
    print(DIRECTORY)
