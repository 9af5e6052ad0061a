"""A ServerApp that sends a model to all clients, waits for the answers as Flower's own strategies do, and notes the seconds."""

import json
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of `send_and_receive`, each with numbers that nobody has seen, as a model that was trained has."""
    config = context.run_config
    shapes = json.loads(Path(str(config["shapes"])).read_text())
    while len(list(grid.get_node_ids())) < int(config["clients"]):
        time.sleep(0.5)
    nodes = list(grid.get_node_ids())
    rng = np.random.default_rng(0)
    with open(str(config["out"]), "a", encoding="utf-8") as out:
        for index in range(1, int(config["rounds"]) + 1):
            arrays = OrderedDict((name, rng.random(shape, dtype=np.float32)) for name, shape in shapes.items())
            begun = time.time()
            content = RecordDict({"weights": ArrayRecord(OrderedDict((name, Array(array)) for name, array in arrays.items()))})
            messages = [Message(content, node, MessageType.TRAIN, group_id=str(index)) for node in nodes]
            answers = list(grid.send_and_receive(messages, timeout=3600))
            received = sum(array.numpy().nbytes for answer in answers for array in answer.content["weights"].values())
            line = {"round": index, "begun": begun, "ended": time.time(), "answers": len(answers), "received": received}
            out.write(json.dumps(line) + "\n")
            out.flush()
