"""The process of one variant, or of the quality gates: started by `benchmarks.process`."""

from __future__ import annotations

import json
import sys

from benchmarks import ours, parity, stock
from benchmarks.process import Channel, Spec
from benchmarks.variants import BY_NAME


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    spec, channel = Spec(**given.pop("spec")), Channel()
    if name == "parity":
        channel.send(ready=True)
        while channel.receive() != "stop":
            channel.send(**parity.check(spec, **given))
    else:
        variant = BY_NAME[name]
        (ours if variant.wins else stock).serve(channel, spec, variant)


if __name__ == "__main__":
    main()
