"""The client: an ordinary Flower app, and one mod."""

import task
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from nearzip.flower import NearzipMod  # nearzip

app = ClientApp(mods=[NearzipMod()])  # nearzip


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the model received."""
    client = int(context.node_config["partition-id"])
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    trained = task.train(model, client, int(message.content["config"]["server-round"]))
    arrays = ArrayRecord({name: Array(value) for name, value in trained.items()})
    metrics = MetricRecord({"num-examples": len(task.shard(client)[1])})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
