import torch
from test_lora_linear import losses_and_gradients, tiny

from raystyle.training.recompute import recompute


def test_the_first_layers_recompute_and_nothing_else_changes():
    model = tiny(dropout=0.1)
    torch.manual_seed(0)
    loss, expected = losses_and_gradients(model)
    runs = [0, 0]
    for place, layer in enumerate(model.get_base_model().model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, place=place: runs.__setitem__(place, runs[place] + 1))
    for asked, done, times in [(0, 0, [1, 1]), (1, 1, [2, 1]), (10**6, 2, [2, 2])]:
        assert recompute(model, asked) == done
        runs[:] = [0, 0]
        torch.manual_seed(0)
        again, gradients = losses_and_gradients(model)
        assert runs == times
        assert torch.equal(again, loss)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0, msg=name)
