import torch


def initialise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.trunc_normal_(p, 0, 0.02, -0.04, 0.04, generator=g)
