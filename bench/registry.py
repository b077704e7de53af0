# SPDX-License-Identifier: MIT
"""List the peers by name: which exist, which run by default.

The order is the order of tables and plots.
"""

from __future__ import annotations

from peers import CpuattnPeer, JaxPeer, NaivePeer, Peer
from peers_onnxruntime import OnnxRuntimePeer
from peers_openvino import OpenVinoPeer
from peers_torch import TorchFoldedPeer, TorchPeer

PEERS: tuple[Peer, ...] = (
    CpuattnPeer(),
    CpuattnPeer(isa="avx512"),
    CpuattnPeer(isa="avx2"),
    CpuattnPeer(isa="scalar"),
    CpuattnPeer(reuse_out=True),
    TorchPeer(),
    TorchFoldedPeer(),
    OnnxRuntimePeer(),
    OpenVinoPeer(),
    JaxPeer(),
    NaivePeer(),
)
DEFAULT_PEERS = (
    "cpuattn",
    "cpuattn-avx512",
    "cpuattn-avx2",
    "torch",
    "onnxruntime",
    "openvino",
    "naive",
)


def is_own(name: str) -> bool:
    """Return whether a peer is cpuattn itself."""
    return name.partition("-")[0] == "cpuattn"


def select_peers(names: list[str]) -> list[Peer]:
    """Choose peers by name.

    Raises
    ------
    ValueError
        If a name is not a peer.
    """
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"peer: must be one of {', '.join(known)}; got {', '.join(unknown)}"
        )
    return [peer for peer in PEERS if peer.name in names]
