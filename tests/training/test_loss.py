import pytest
import torch
from torch.nn.functional import cross_entropy

from raystyle.training import loss


@pytest.mark.parametrize("chunk_bytes", [2**28, 4 * 11 * 7, 1])
def test_chunked_cross_entropy_equals_the_whole_one_and_so_do_its_gradients(monkeypatch, chunk_bytes):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False).double()
    hidden_TD = torch.randn(33, 8, dtype=torch.double, requires_grad=True)
    labels_T = torch.randint(0, 11, (33,))
    labels_T[[0, 5, 20]] = loss.IGNORE

    whole = cross_entropy(head(hidden_TD)[:-1].float(), labels_T[1:], ignore_index=loss.IGNORE, reduction="sum")
    [expected] = torch.autograd.grad(whole, hidden_TD)
    chunked = loss.summed_cross_entropy(hidden_TD, head, labels_T, 11)
    [gradient] = torch.autograd.grad(chunked, hidden_TD)

    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_batch_without_labels_has_loss_zero_and_a_gradient_of_zero():
    head = torch.nn.Linear(4, 5)
    hidden_TD = torch.randn(2, 4, requires_grad=True)
    total = loss.summed_cross_entropy(hidden_TD, head, torch.full((2,), loss.IGNORE), 5)
    total.backward()
    assert total == 0
    assert not hidden_TD.grad.any()
