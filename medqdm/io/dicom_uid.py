"""UIDs: derived from what an object is made of, so that the same run gives the same objects."""

import uuid


def make_uid(*parts: str) -> str:
    """A UID below 2.25 that depends on all the parts (and on where one ends)."""
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"
