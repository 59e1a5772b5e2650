"""Persistent user states: see `store.UserStateStore` and docs/state-store.md."""

from jaxrec.errors import StoreError
from jaxrec.state_store.encodings import decode_state, encode_state
from jaxrec.state_store.metadata import Binding
from jaxrec.state_store.row_format import RowSpec, state_columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId

__all__ = [
    "Binding",
    "RowSpec",
    "StoreError",
    "UserId",
    "UserStateStore",
    "decode_state",
    "encode_state",
    "state_columns",
]
