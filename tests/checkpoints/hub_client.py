"""Opens sources one after the other, as told on standard input: `HF_ENDPOINT` is read when the library is imported."""

import json
import sys

from hf_moe_lmc.checkpoints import find_source
from hf_moe_lmc.errors import MoeLmcError

if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            source = find_source(asked["name"], asked["options"])
            answer = {"folder": str(source.folder), "commit": source.commit, "listed": source.listed}
        except MoeLmcError as error:
            answer = {"code": error.exit_code, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
