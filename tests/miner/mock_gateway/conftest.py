"""A node of a mock gateway without sockets, and a worker."""

import pytest

from miner.mock_gateway.node import MockCluster, MockNode
from tests.support.fakes import Clock
from tests.support.mock_gateway import BEGIN, GatewayWorker, cluster


@pytest.fixture
def clock() -> Clock:
    return Clock(BEGIN)


@pytest.fixture
def gateway(clock: Clock) -> MockCluster:
    return cluster(clock)


@pytest.fixture
def node(gateway: MockCluster) -> MockNode:
    return gateway.nodes[0]


@pytest.fixture
def alice(node: MockNode, clock: Clock) -> GatewayWorker:
    return GatewayWorker(node, clock)
