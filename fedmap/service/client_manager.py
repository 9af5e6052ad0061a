"""The counterpart of FedOps' client manager on a client's own front, for programs that expect one beside each client.

`FEDOPS_CLIENT_MANAGER_URL` of such a program is the front's address. The answers describe this client; what such a program says
of its own training is kept and shown, and changes nothing here.
"""

from __future__ import annotations

import socket
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fedmap.participation import Participation, Standing

PATHS = ("/info", "/info/", "/trainFin", "/trainFail", "/flclient_out")


class ManagerInfo(BaseModel):
    """FedOps' document of a client manager, in the parts that mean something here."""

    GL_Model_V: int = Field(description="the number of the global model; 1 where no FedOps platform gives another")
    FL_ready: bool = Field(description="whether a server is known")
    client_online: bool
    client_training: bool
    task_id: str
    client_mac: str
    client_name: str
    last_told: Literal["", "trainFin", "trainFail", "flclient_out"] = Field(description="what was told here last")


def router(task_id: str, mac: str, participation: Participation) -> APIRouter:
    """The routes of a client manager."""
    routes = APIRouter(tags=["FedOps client manager"])
    told: list[Literal["trainFin", "trainFail", "flclient_out"]] = []

    def info() -> ManagerInfo:
        standing: Standing = participation.standing
        return ManagerInfo(
            GL_Model_V=standing.model_version or 1,
            FL_ready=bool(standing.address),
            client_online=True,
            client_training=participation.wanted,
            task_id=task_id,
            client_mac=mac,
            client_name=socket.gethostname(),
            last_told=told[-1] if told else "",
        )

    @routes.get("/info")
    @routes.get("/info/", include_in_schema=False)
    def get_info() -> ManagerInfo:
        """The client, and the number of the global model."""
        return info()

    @routes.get("/trainFin")
    def train_fin() -> ManagerInfo:
        """A program beside this client has finished its training."""
        told[:] = ["trainFin"]
        return info()

    @routes.get("/trainFail")
    def train_fail() -> ManagerInfo:
        """A program beside this client has failed."""
        told[:] = ["trainFail"]
        return info()

    @routes.get("/flclient_out")
    def client_out() -> ManagerInfo:
        """A program beside this client has ended."""
        told[:] = ["flclient_out"]
        return info()

    return routes
