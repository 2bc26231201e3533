"""Power cuts and failing disks under the real store: `python -m proof.disk`; `campaigns` plays them."""
