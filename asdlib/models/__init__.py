"""Networks. Each is a `torch.nn.Module` with `loss(batch, generator) -> dict of scalar tensors`, whose entry
`loss` is what `asdlib.models.training` descends and whose other entries are logged; nothing here knows of
files, studies or clips. `encoders` are networks that others have trained: frozen, without a loss.
"""
