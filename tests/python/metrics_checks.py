"""Reads a page of metrics in each of its two forms with Prometheus's own client library.

metrics_checks.py PAGE.txt PAGE.openmetrics
"""

import sys
from pathlib import Path

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text


def samples(families):
    # The reader of the older form gives each counter the ending that the newer one asks for.
    return {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


plain, opened = (Path(path).read_text() for path in sys.argv[1:3])
plain = samples(text.text_string_to_metric_families(plain))
opened = samples(openmetrics.text_string_to_metric_families(opened))
assert len(plain) > 100, len(plain)
missing = plain.keys() - opened.keys()
more = opened.keys() - plain.keys()
assert not missing and not more, (missing, more)
print(len(plain), "samples in both forms")
