# SPDX-License-Identifier: Apache-2.0
"""In a guest: holds a queue pair and what it takes (a CM id, a PD, CQs) until it is killed. Prints `held`."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time


class QpInitAttr(ctypes.Structure):
    """struct ibv_qp_init_attr."""

    _fields_ = [
        ("qp_context", ctypes.c_void_p), ("send_cq", ctypes.c_void_p), ("recv_cq", ctypes.c_void_p), ("srq", ctypes.c_void_p),
        ("max_send_wr", ctypes.c_uint32), ("max_recv_wr", ctypes.c_uint32), ("max_send_sge", ctypes.c_uint32),
        ("max_recv_sge", ctypes.c_uint32), ("max_inline_data", ctypes.c_uint32), ("qp_type", ctypes.c_int), ("sq_sig_all", ctypes.c_int),
    ]  # fmt: skip


RDMA_PS_TCP = 0x0106
IBV_QPT_RC = 2

cm = ctypes.CDLL("librdmacm.so.1", use_errno=True)
cm.rdma_create_event_channel.restype = ctypes.c_void_p
channel = ctypes.c_void_p(cm.rdma_create_event_channel())
cm_id = ctypes.c_void_p()
address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(sys.argv[1]))
attributes = QpInitAttr(None, None, None, None, 4, 4, 1, 1, 0, IBV_QPT_RC, 1)
for done in (
    cm.rdma_create_id(channel, ctypes.byref(cm_id), None, RDMA_PS_TCP),
    cm.rdma_bind_addr(cm_id, address),
    cm.rdma_create_qp(cm_id, None, ctypes.byref(attributes)),
):
    if done != 0:
        sys.exit(f"errno {ctypes.get_errno()}")
print("held", flush=True)
time.sleep(1000)
