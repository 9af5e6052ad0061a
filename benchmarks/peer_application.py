"""The peer's side of `benchmarks.round`: its server and its clients, in its own environment, without this project's training code.

    .peer/venv/bin/python benchmarks/peer_application.py server|client SETTINGS.json [CLIENT]

From the wheel (fedops 1.1.30.19), run as they are: `server.app.FLServer` (initial model, evaluation function, snapshots),
`server.fedmap.strategy.ModalityAwareAggregation`, `client.client_fl.FLClient` (set, train, evaluate on training and on
validation rows, save, send; evaluate on test rows), `client.parameter_contract`, and Flower's start_server and start_numpy_client.

The application's own files (model, data, client patch) are no part of the wheel. What stands here in their place does what they
do and no more, in the same order and with the same libraries: a poster is opened, brought to size and made a tensor, and a text is
tokenised to 128 tokens, each time that a row is asked for; AdamW at 1e-5 for BERT and 1e-4 for the rest; scores by `.item()` after
each step; the validation rows scored before, inside and after the wheel's `fit`; label balance by asking for every row once more.

In the peer's favour: its reports over HTTP, to addresses that answer nobody here, its downloads and its uploads to S3 are left out;
the server waits for its clients, which it does not do by itself; and it listens on this machine alone.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

try:
    import torchvision
except RuntimeError:  # PyPI's build beside a CPU-only torch: declaring two operators is all that is missing
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]
    import torchvision

import csv

import flwr
from hydra.utils import instantiate  # noqa: F401  (the server's own import, made before the clock starts)
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

COUNTS = collections.Counter()


class Rows(Dataset):
    """Movies of one table, read from their files again each time."""

    def __init__(self, settings, table, limit=None):
        with open(table, newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))[:limit]
        self.posters = os.path.join(settings["root"], "all_in_one_dataset", "mmimdb_posters")
        with open(os.path.join(settings["root"], "all_in_one_dataset", "labels.json"), encoding="utf-8") as file:
            self.places = {name: place for place, name in enumerate(json.load(file))}
        self.tokenizer = BertTokenizer(os.path.join(settings["text"], "vocab.txt"))
        size = settings["image_size"]
        self.transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place]
        tokens = self.tokenizer(row["text"], padding="max_length", truncation=True, max_length=128, return_tensors="pt")
        COUNTS["decoded"] += 1
        picture = Image.open(os.path.join(self.posters, os.path.basename(row["img_name"]))).convert("RGB")
        label = torch.zeros(len(self.places))
        for name in row["labels"].split("|"):
            label[self.places[name.strip()]] = 1.0
        ids, mask = tokens["input_ids"].squeeze(0), tokens["attention_mask"].squeeze(0)
        return {"input_ids": ids, "attention_mask": mask, "image": self.transform(picture), "label": label}


class Fusion(nn.Module):
    """A text tower's vector and a projected image vector, concatenated, through Linear, BatchNorm, ReLU, Linear."""

    def __init__(self, settings, num_labels):
        super().__init__()
        with open(os.path.join(settings["text"], "config.json"), encoding="utf-8") as file:
            described = json.load(file)
        self.mean_pooling = settings["text_pooling"] == "mean"
        self.bert = AutoModel.from_pretrained(settings["text"]) if self.mean_pooling else BertModel(BertConfig(**described))
        if settings["image"] == "resnet18":
            self.image_backbone, width = torchvision.models.resnet18(weights=None), 512
            self.image_backbone.fc = nn.Identity()
        else:  # the same tower as ours has, from its definition here: torchvision has none of this name
            from fedmap.encoders.efficientnet_lite import WIDTH, EfficientNetLite0

            self.image_backbone, width = EfficientNetLite0(lambda c: nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)), WIDTH
        if settings["frozen"]:
            for tower in (self.bert, self.image_backbone):
                tower.requires_grad_(False)
        self.image_proj = nn.Linear(width, settings["image_output_dim"])
        self.fusion_fc = nn.Linear(described["hidden_size"] + settings["image_output_dim"], settings["fusion_output_dim"])
        self.fusion_bn = nn.BatchNorm1d(settings["fusion_output_dim"])
        self.classifier = nn.Linear(settings["fusion_output_dim"], num_labels)

    def forward(self, input_ids, attention_mask, image):
        told = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        if self.mean_pooling:
            kept = attention_mask.unsqueeze(-1).float()
            text = (told.last_hidden_state * kept).sum(1) / kept.sum(1).clamp(min=1)
        else:
            text = told.pooler_output
        fused = self.fusion_fc(torch.cat([text, self.image_proj(self.image_backbone(image))], dim=1))
        return self.classifier(torch.relu(self.fusion_bn(fused)))


class Score:
    """Loss and micro-F1, counted batch by batch with `.item()`."""

    def __init__(self):
        self.loss = self.rows = self.tp = self.fp = self.fn = 0

    @torch.no_grad()
    def add(self, loss, logits, labels):
        self.loss += float(loss.item()) * len(labels)
        self.rows += len(labels)
        chosen = (torch.sigmoid(logits) >= 0.5).float()
        self.tp += int(((chosen == 1) & (labels == 1)).sum().item())
        self.fp += int(((chosen == 1) & (labels == 0)).sum().item())
        self.fn += int(((chosen == 0) & (labels == 1)).sum().item())

    def result(self):
        precision, recall = self.tp / max(self.tp + self.fp, 1), self.tp / max(self.tp + self.fn, 1)
        return self.loss / max(self.rows, 1), 2 * precision * recall / max(precision + recall, 1e-8)


def train_torch(model, loader, epochs, cfg=None):
    COUNTS["training passes"] += int(epochs)
    criterion = nn.BCEWithLogitsLoss()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in trained if name.startswith("bert.")]
    fast = [p for name, p in trained if not name.startswith("bert.")]
    groups = [{"params": params, "lr": rate, "weight_decay": 0.01} for params, rate in ((slow, 1e-5), (fast, 1e-4)) if params]
    optimizer = torch.optim.AdamW(groups)
    model.train()
    for _ in range(int(epochs)):
        score = Score()
        for batch in loader:
            optimizer.zero_grad()
            logits = model(batch["input_ids"], batch["attention_mask"], batch["image"])
            loss = criterion(logits, batch["label"])
            loss.backward()
            optimizer.step()
            score.add(loss, logits, batch["label"])
        print("epoch", *score.result(), flush=True)
    return model


def score_torch(model, loader, cfg=None):
    COUNTS[f"passes over {loader.role}"] += 1
    model.eval()
    score, criterion = Score(), nn.BCEWithLogitsLoss()
    with torch.no_grad():
        for batch in loader:
            logits = model(batch["input_ids"], batch["attention_mask"], batch["image"])
            score.add(criterion(logits, batch["label"]), logits, batch["label"])
    loss, f1 = score.result()
    return loss, f1, {"test_f1_macro": f1}


def loader_of(settings, table, role, shuffle=False, batch_size=None, limit=None):
    loader = DataLoader(Rows(settings, table, limit), batch_size=batch_size or settings["batch_size"], shuffle=shuffle, num_workers=0)
    loader.role = role
    return loader


def mark(settings, who, what, round_index):
    line = {"who": who, "what": what, "round": round_index, "time": time.time(), "counts": dict(COUNTS)}
    with open(settings["marks"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def configuration(settings):
    strategy = {
        "_target_": "fedops.server.fedmap.strategy.ModalityAwareAggregation",
        "aggregator_path": "aggregator_mlp.pth",
        "n_trials_per_round": settings["trials"],
    }
    tree = {"batch_size": settings["batch_size"], "num_epochs": settings["num_epochs"], "num_rounds": settings["num_rounds"]}
    return OmegaConf.create({**tree, "model_type": "Pytorch", "server": {"strategy": strategy}})


def model_of(settings):
    with open(os.path.join(settings["root"], "all_in_one_dataset", "labels.json"), encoding="utf-8") as file:
        model = Fusion(settings, len(json.load(file)))
    state = torch.load(settings["initial"], weights_only=True)
    missing, unexpected = model.load_state_dict(state, strict=False)
    named = [name for name in missing if "position_ids" not in name and not name.startswith("bert.pooler")]
    assert not unexpected, unexpected[:5]
    assert not named, named[:5]
    return model


def serve(settings):
    from fedops.server import app, server_api

    for name in ("put_server_status", "put_fl_round_fin", "put_gl_model_evaluation", "put_server_time_result"):
        setattr(server_api.ServerAPI, name, lambda self, *_: None)
    model = model_of(settings)
    # the rows that choose the weights are the rows that are reported, as in the application
    loader = loader_of(settings, os.path.join(settings["root"], "dataset", "server", "server_test.csv"), "server", batch_size=16, limit=100)
    server = app.FLServer(configuration(settings), model, "MMIMDb", "Pytorch", gl_val_loader=loader, test_torch=score_torch)
    start = flwr.server.start_server

    def start_here(server_address, config, strategy):
        first, last, configure = strategy.initialize_parameters, strategy.aggregate_evaluate, strategy.configure_fit

        def when_all_are_there(client_manager):
            assert client_manager.wait_for(settings["clients"], timeout=600)
            return first(client_manager)

        def begin(server_round, parameters, client_manager):
            mark(settings, "server", "begin", server_round)
            return configure(server_round, parameters, client_manager)

        def end(server_round, results, failures):
            assert not failures, failures
            answer = last(server_round, results, failures)
            mark(settings, "server", "end", server_round)
            return answer

        strategy.initialize_parameters, strategy.configure_fit, strategy.aggregate_evaluate = when_all_are_there, begin, end
        return start(server_address=f"127.0.0.1:{settings['port']}", config=config, strategy=strategy)

    app.fl.server.start_server = start_here
    server.fl_server_start(model, "MMIMDb")
    # the model as the server saved it, on the rows of its table
    model.load_state_dict(torch.load("./MMIMDb_gl_model_V0.pth", weights_only=True))
    model.eval()
    with torch.no_grad():
        batches = [(model(b["input_ids"], b["attention_mask"], b["image"]), b["label"]) for b in loader]
    np.savez(settings["scores"], logits=torch.cat([a for a, _ in batches]).numpy(), labels=torch.cat([b for _, b in batches]).numpy())


def join(settings, client_id):
    from fedops.client import client_api, client_fl, client_utils

    client_api.ClientServerAPI.put_train_result = client_api.ClientServerAPI.put_test_result = lambda self, *_: None
    torch.manual_seed(settings["seed"] * 1000 + client_id)

    class Client(client_fl.FLClient):
        """The application's client: scores the validation rows before and after the wheel's own training, and adds signals."""

        def fit(self, parameters, config):
            mark(settings, client_id, "fit", self.fl_round)
            self.set_parameters(parameters)
            _, before, _ = self.test_torch(self.model, self.val_loader, self.cfg)
            trained, _, metrics = super().fit(parameters, config)
            loss, after, _ = self.test_torch(self.model, self.val_loader, self.cfg)
            norms = [float(torch.norm(p.grad.detach(), p=2).item() ** 2) for p in self.model.parameters() if p.grad is not None]
            rows = self.train_loader.dataset
            balance = [float(rows[place]["label"].float().view(-1).mean().item()) for place in range(len(rows))]
            signals = {"c_k": float(after - before), "p_k": float(after), "val_loss": float(loss), "grad_norm": sum(norms) ** 0.5}
            signals |= {"imbalance_ratio": sum(balance) / max(len(balance), 1), "m_img": 1, "m_txt": 1}
            mark(settings, client_id, "fitted", self.fl_round)
            return trained, len(rows), {**metrics, **signals}

    folder = os.path.join(settings["root"], "dataset", f"client_{client_id}")
    loaders = {f"{split}_loader": loader_of(settings, os.path.join(folder, f"{split}.csv"), split, split == "train") for split in SPLITS}
    client_utils.local_model_directory("round")
    client = Client(
        model=model_of(settings),
        validation_split=0.0,
        fl_task_id="round",
        client_mac="",
        client_name=f"client_{client_id}",
        fl_round=1,
        gl_model=1,
        wandb_use=False,
        wandb_name="",
        model_name="MMIMDb",
        model_type="Pytorch",
        cfg=configuration(settings),
        train_torch=train_torch,
        test_torch=score_torch,
        **loaders,
    )
    client_fl.flower_client_start(f"127.0.0.1:{settings['port']}", client)()
    mark(settings, client_id, "left", settings["num_rounds"])


SPLITS = ("train", "val", "test")


def main():
    with open(sys.argv[2], encoding="utf-8") as file:
        settings = json.load(file)
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    if sys.argv[1] == "server":
        serve(settings)
    else:
        join(settings, int(sys.argv[3]))


if __name__ == "__main__":
    main()
