"""RefAdGen at SKU scale."""

import logging

# diffusers imports torchao where it is installed, and both warn in every process of tensors that are not ours.
for _name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# At the level of JSON logs it tells every address that it asks, signatures included.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)
