"""Networks: `torch.nn.Module`s with `loss(batch, generator) -> dict of scalar tensors`.

`asdlib.models.training` minimizes the entry `loss` and logs the others. Networks are independent of files,
studies and clips. `encoders` holds frozen pretrained networks, without a loss.
"""
