from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.cluster_assigned import ClusterAssignedEmbedding
from lessen.stored.tables.embedding import TableShape

SEGMENTS = [["a", 1, 5], ["b", 6, 600], ["c", 606, 20]]


def made(clusters, padding=0):
    # blocks: padding row, a, b, c
    table = ClusterAssignedEmbedding(TableShape(626, 3, padding, segments=SEGMENTS), [0, 1], clusters)
    with torch.no_grad():
        table.centres.weight.copy_(torch.arange(table.centres.weight.numel()).view(-1, 3).float())
        table.exact.weight.copy_(-torch.arange(table.exact.weight.numel()).view(-1, 3).float() - 1)
    return table


@pytest.mark.parametrize(("clusters", "width"), [([200, 4], 1), ([300, 4], 2)])
def test_ids_read_the_centre_of_their_cluster_and_small_fields_their_own_rows(clusters, width):
    table = made(clusters)
    assert table.codes.shape == (620, width)
    chosen = torch.arange(600) % clusters[0]
    table.assign(torch.arange(600), chosen)
    table.assign(torch.tensor([600, 619]), torch.tensor([3, 2]))
    assert torch.equal(table.assignment(torch.arange(600)), chosen)
    assert torch.equal(table(torch.arange(6, 606)), table.centres.weight[chosen])
    assert torch.equal(table(torch.tensor([606, 625])), table.centres.weight[[clusters[0] + 3, clusters[0] + 2]])
    assert torch.equal(table(torch.tensor([1, 5])), table.exact.weight[[1, 5]])
    assert not bool(table(torch.tensor([0])).any())
    assert table(torch.zeros(2, 0, dtype=torch.int32)).shape == (2, 0, 3)


@pytest.mark.parametrize("change", [{"clusters": [601, 2]}, {"clusters": [5]}, {"clusters": [0, 1]}, {"clusters": "x"}])
def test_senseless_configurations_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        ClusterAssignedEmbedding.from_config({**made([9, 2]).config(), **change})
